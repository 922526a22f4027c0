"""JEST in a bare open_clip loop, on one device.

python train.py '/data/pool/{00000..00099}.tar' --weights webli
"""

import argparse
import io
import math

import open_clip
import torch
import webdataset as wds
from PIL import Image

from jestcli.selection import PairEmbeddings, select

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("shards", help="the pool: webdataset shards of .jpg (.png, .webp) and .txt")
parser.add_argument("--model", default="ViT-B-16-SigLIP", help="the learner, an open_clip name")
parser.add_argument("--reference", default="ViT-B-16-SigLIP", help="of the same pixels and tokens")
parser.add_argument("--weights", required=True, help="of the reference: open_clip's tag or a file")
parser.add_argument("--batch-size", type=int, default=256, help="b: pairs trained on a step")
parser.add_argument("--filter-ratio", type=float, default=0.8, help="f = 1 - b/B")
parser.add_argument("--steps", type=int, default=10_000)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--workers", type=int, default=4)
parser.add_argument("--out", default="learner.pt")
args = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"

siglip = dict(init_logit_scale=math.log(10), init_logit_bias=-10.0)
learner, _, preprocess = open_clip.create_model_and_transforms(args.model, device=device, **siglip)
reference = open_clip.create_model(args.reference, args.weights, device=device).eval()
tokenizer, loss = open_clip.get_tokenizer(args.model), open_clip.loss.SigLipLoss()
optimizer = torch.optim.AdamW(learner.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=1e-4)

# Raw bytes, not wds.decode, which would unpickle what it finds in a stranger's shard.
pool = wds.WebDataset(args.shards, resampled=True).shuffle(1000)
pool = (
    pool.to_tuple("jpg;png;jpeg;webp", "txt")
    .map_tuple(
        lambda data: preprocess(Image.open(io.BytesIO(data))),
        lambda text: tokenizer(text.decode())[0],
    )
    .batched(round(args.batch_size / (1 - args.filter_ratio)), partial=False)
)
loader = wds.WebLoader(pool, batch_size=None, num_workers=args.workers)

for step, (images, texts) in zip(range(args.steps), loader, strict=False):
    images, texts = images.to(device), texts.to(device)
    with torch.no_grad():  # score the super-batch with both, choose, train on the chosen alone
        scored = [PairEmbeddings.from_open_clip(m(images, texts)) for m in (learner, reference)]
    chosen = select(*scored, size=args.batch_size, step=step)
    anneal = min(1, (step + 1) / 100, 5 * (1 - step / args.steps))
    optimizer.param_groups[0]["lr"] = args.lr * anneal
    total = loss(*learner(images[chosen], texts[chosen]))
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    if step % 100 == 0 or step + 1 == args.steps:
        print(f"step {step + 1}  loss {total.item():.3f}", flush=True)
torch.save(learner.state_dict(), args.out)  # open_clip.create_model(name, file) reads it
