"""JEST in a Hugging Face loop: transformers' SigLIP or CLIP, Accelerate, one or many processes.

accelerate launch train_accelerate.py '/data/pool/{00000..00099}.tar' google/siglip-base-patch16-224
"""

import io
import math
import sys

import torch
import webdataset as wds
from accelerate import Accelerator
from open_clip.loss import ClipLoss, SigLipLoss
from PIL import Image
from transformers import AutoModel, AutoProcessor

from jestcli.selection import PairEmbeddings, select


def pairs(out, model):
    """What select reads, of a SiglipModel's or CLIPModel's output."""
    scale, bias = model.logit_scale.exp(), getattr(model, "logit_bias", torch.zeros(()))
    return PairEmbeddings(out.image_embeds, out.text_embeds, scale, bias)


def train(learner, reference, loader, size, steps, lr=1e-3):
    """Train `learner` on the pairs chosen of each super-batch, `size` a process."""
    accelerator = Accelerator()
    optimizer = torch.optim.AdamW(learner.parameters(), lr, betas=(0.9, 0.95))
    learner, optimizer = accelerator.prepare(learner, optimizer)
    reference, plain = reference.eval().to(accelerator.device), accelerator.unwrap_model(learner)
    rank, many = accelerator.process_index, accelerator.num_processes
    group = torch.distributed.group.WORLD if many > 1 else None
    sigmoid = hasattr(plain, "logit_bias")  # CLIP has none: the softmax loss
    # transformers' own losses know the pairs of one process alone.
    kept = {"rank": rank, "world_size": many}
    loss_of = (
        SigLipLoss(**kept) if sigmoid else ClipLoss(local_loss=True, gather_with_grad=True, **kept)
    )
    for step, batch in zip(range(steps), loader, strict=False):
        batch = {name: x.to(accelerator.device) for name, x in batch.items()}
        count = len(batch["input_ids"])
        with torch.no_grad(), accelerator.autocast():
            scored = [pairs(model(**batch), model) for model in (plain, reference)]
        how = {"loss": "sigmoid" if sigmoid else "softmax", "group": group, "mode": "balanced"}
        chosen = select(*scored, size=size * many, step=step, **how)
        mine = chosen[chosen // count == rank] % count  # no pair has to move
        out = pairs(learner(**{name: x[mine] for name, x in batch.items()}), plain)
        loss = loss_of(out.image, out.text, out.scale, *([out.bias] if sigmoid else []))
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if step % 100 == 0 or step + 1 == steps:
            accelerator.print(f"step {step + 1}  loss {loss.item():.3f}")
    return plain


if __name__ == "__main__":
    shards, name = sys.argv[1:]
    reference, processor = AutoModel.from_pretrained(name), AutoProcessor.from_pretrained(name)
    learner = AutoModel.from_config(reference.config)
    if hasattr(learner, "logit_bias"):  # SigLIP's start, which from_config does not make
        learner.logit_scale.data.fill_(math.log(10))
        learner.logit_bias.data.fill_(-10)
    pool = wds.WebDataset(shards, resampled=True).shuffle(1000).to_tuple("jpg;png;webp", "txt")
    pool = pool.map_tuple(lambda x: Image.open(io.BytesIO(x)).convert("RGB"), bytes.decode)
    batches = pool.batched(
        320,
        collation_fn=lambda rows: processor(
            images=[image for image, _ in rows],
            text=[text for _, text in rows],
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ),
    )
    train(learner, reference, wds.WebLoader(batches, batch_size=None, num_workers=4), 64, 10_000)
    learner.save_pretrained("learner")
