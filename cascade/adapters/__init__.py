"""LoRA in every format, learned tokens, and instruct networks.

`read_lora` reads a file of any trainer into one form (`Lora`). `attach` applies it to networks until it is detached,
`merge` permanently. `save_lora` writes any format. `extract` makes a LoRA from two networks.
"""

from .attaching import Applied, Attachment, attach, merge
from .changes import OFT, Full, LoHa, LoKr, LowRank, Rows
from .extracting import extract
from .instruct import InstructNetwork, read_instruct, save_instruct
from .lora import Lora, Token
from .names import FORMATS
from .norms import chart, norm_of, norms_by_block, summary
from .reading import read_lora
from .tokens import LearnedTokenizer, TokenTable, absolute, check_token, vectors_of
from .writing import WRITABLE, metadata_of, save_lora, to_tensors

__all__ = [
    "FORMATS",
    "OFT",
    "WRITABLE",
    "Applied",
    "Attachment",
    "Full",
    "InstructNetwork",
    "LearnedTokenizer",
    "LoHa",
    "LoKr",
    "Lora",
    "LowRank",
    "Rows",
    "Token",
    "TokenTable",
    "absolute",
    "attach",
    "chart",
    "check_token",
    "extract",
    "merge",
    "metadata_of",
    "norm_of",
    "norms_by_block",
    "read_instruct",
    "read_lora",
    "save_instruct",
    "save_lora",
    "summary",
    "to_tensors",
    "vectors_of",
]
