"""The paper's own numbers, as printed or read off its figures, with where each comes from.

[P] seen in the paper's figures, tables or listings; [S] second-hand; [D] derived by arithmetic.
They are photographs from the web at 10^9 to 10^10 examples: nothing here is comparable in level
with the embedded data, only in direction and ratio.
"""

from __future__ import annotations

TABLE1_COLUMNS = (
    "Method",
    "Examples",
    "Cost per iteration %",
    "Total %",
    "ImageNet 10-shot",
    "ImageNet zero-shot",
    "COCO I→T",
    "COCO T→I",
    "Source",
)
TABLE1 = (
    ("SigLIP B", "40B", "100", "100", "70.3", "76.7", "65.2", "47.4", "Table 1 [P]"),
    ("JEST++ B", "4B", "233", "23", "70.3", "76.9", "70.3", "53.3", "Table 1 [P]"),
    ("Flexi-JEST++ B", "4B", "110", "11", "68.2", "75.8", "68.0", "51.2", "Table 1 [P]"),
    ("SigLIP L", "40B", "100", "100", "77.1", "80.5", "69.5", "51.2", "Table 1 [P]; cost [D]"),
    ("JEST++ L", "4B", "233", "23", "75.5", "80.5", "71.1", "54.8", "Table 1 [P]"),
)
FIGURE1_COLUMNS = ("Method", "Final mean of 8 tasks", "× fewer examples", "× fewer FLOPs", "Source")
FIGURE1 = (
    ("SigLIP 40B", "≈ 76.1", "1", "1", "Fig. 1, digitised [P]"),
    ("JEST", "76.9", "11.6", "4.3", "Fig. 1, digitised [P]"),
    ("JEST++", "77.9", "13.1", "4.9", "Fig. 1, digitised [P]"),
    ("Flexi-JEST++", "76.5", "10.9", "9.9", "Fig. 1, digitised [P]"),
)
COST_NOTE = (
    "The paper's cost per iteration at f = .8: 233 % with the reference cached and the selected "
    "forwards re-used (Table 1 [P]); 267 % without re-use, which its Fig. 1 plots [D]; 400 % with "
    "the reference not cached [D]; the reference's training is charged in none of them [D]."
)
# Fig. 2, digitised [P]: learnability of the chosen sub-batch.
FIGURE2_CHUNKS = {1: 0.0, 2: 0.69, 4: 0.885, 8: 0.96, 16: 0.993, 32: 1.0}  # f = .5
FIGURE2_RATIOS = {0.0: 0.0, 0.5: 1.0, 0.8: 1.12, 0.9: 1.15}
