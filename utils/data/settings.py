"""The dataset tier (configs/datasets/*.yaml): raw files, how they are read, and what is made of them."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from utils.data.reader import Reader
from utils.data.readers import all_readers
from utils.frame.config import absolute_if_local
from utils.frame.files import resolve_path
from utils.frame.typed_settings import setting


@dataclass
class DatasetConfig:
    """The dataset tier: configs/datasets/*.yaml."""

    dataset: Literal[tuple(all_readers())] = setting(
        "sample", "which reader; of a set of your own: whose form prompts and answers have"
    )
    name: str = setting("", "what reports call a set of your own; empty: what dataset says")
    reader: str = setting(
        "", "Python file whose read(path, split) yields the rows of a set of your own", path=True
    )
    files: dict[str, str] = setting({}, "raw file by split, below data_root, where it has another name")
    data_root: str = setting("datasets/sample", "folder holding the raw files", path=True)
    val_fraction: float = setting(
        0.1, "part of train held out where the set has no validation split", between=(0, 0.9)
    )
    val_seed: int = setting(0, "which part that is")
    hold_out_levels: list[int] = setting([], "levels kept out of train and val; they stay in test")
    max_train: int | None = setting(None, "use at most this many training items; null for all", at_least=1)
    max_val: int | None = setting(None, "use at most this many validation items; null for all", at_least=1)
    max_test: int | None = setting(None, "use at most this many test items; null for all", at_least=1)
    instruction: str = setting("", "before a FinQA report, after a GSM8K or MATH question; empty for none")
    table_style: Literal["facts", "rows"] = setting(
        "facts", "tables in the prompt: a line per cell or per row"
    )
    max_input_tokens: int | None = setting(
        None,
        "longest input, tokens; FinQA: the least related text is cut; else: the row is left out of train",
        at_least=1,
    )
    context: Literal["full", "retrieved", "gold"] = setting(
        "full", "of a FinQA report: all, what is most related to the question, or the evidence alone"
    )
    context_tokens: int = setting(256, "context: retrieved: most tokens of it", at_least=1)
    derive_evidence: bool = setting(
        False, "rows without qa.gold_inds: find their evidence by the operands of the gold program"
    )
    tokenizer: str = setting("", "counts those tokens: a folder or hub name; empty: estimate", path=True)
    response_fields: list[Literal["evidence", "program", "answer"]] = setting(
        ["program", "answer"], "fields of the taught FinQA response, in order"
    )
    calculator_marks: bool = setting(False, "keep GSM8K's <<16-3=13>> in the taught solution")
    required_fields: list[str] = setting([], "further raw keys a row must have, dotted, e.g. qa.gold_inds")
    error_threshold: float = setting(
        0.05, "share of rows with an error above which 00 and 01 fail", between=(0, 1)
    )

    @staticmethod
    def file_for(overrides: dict[str, Any]) -> str | None:
        """The tier's file where none is named: found by the data below ``--data_root``, else None.

        Raises UserError where the data there are of no known form.
        """
        if "data_root" not in overrides or {"dataset", "reader"} & overrides.keys():
            return None
        from utils.data.recognition import tier_for

        return tier_for(resolve_path(absolute_if_local(overrides["data_root"]).value))

    def validate(self) -> None:
        if len(set(self.hold_out_levels)) < len(self.hold_out_levels):
            raise ValueError(f"hold_out_levels must name no level twice, found {self.hold_out_levels}")
        fields = self.response_fields
        if "program" not in fields or len(set(fields)) < len(fields):
            raise ValueError(f"response_fields must name program, and no field twice, found {fields}")
        if self.context != "full" and not self.form.has_context:
            raise ValueError(f"context must be full for {self.dataset}, whose questions have no report")
        self._validate_own()

    def _validate_own(self) -> None:
        if self.reader and not self.name:
            raise ValueError("reader needs a name: results of your set must not pass for those of another")
        if (self.reader or self.name) and not self.form.row_keys:
            *some, last = (name for name, reader in all_readers().items() if reader.row_keys)
            own = f"{', '.join(some)} or {last}"
            raise ValueError(f"dataset must be {own} for a set of your own, found {self.dataset}")
        if self.name and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.name):
            raise ValueError(f'name must be letters, digits, ".", "_" and "-", found "{self.name}"')
        if unknown := sorted(set(self.files) - {"train", "val", "test"}):
            raise ValueError(f'files must name train, val or test, found "{unknown[0]}"')

    @property
    def label(self) -> str:
        """What records and reports call the set: "gsm8k", and "gsm8k:riddles" where it has a name."""
        return f"{self.dataset}:{self.name}" if self.name else self.dataset

    @property
    def form(self) -> Reader:
        """How rows of this form of data set are read and made into records."""
        return all_readers()[self.dataset]
