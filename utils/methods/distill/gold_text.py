"""Student and teacher side by side on gold text: for validation, and for curricula that go by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from utils.data.prompts import completion_ids, render_prompt
from utils.data.records import Record
from utils.frame.files import UserError
from utils.models.divergences import Kind, Measure, exact_divergence, top_one_and_entropy
from utils.models.prefix.prefix_scoring import token_scores
from utils.models.prefix.shared_prefix import (
    CompletionBatch,
    evaluating,
    output_head,
    position_limit,
    unwrapped,
)

Row = tuple[str, Sequence[int]]  # a rendered prompt, and the token ids of its gold completion
Compared = Callable[[Tensor, Tensor, CompletionBatch], Tensor]  # student's and teacher's states -> [N]


def gold_completions(records: Sequence[Record], tokenizer) -> list[list[int]]:
    """The token ids of every record's gold completion, its end included."""
    return completion_ids(tokenizer, [record.target_text for record in records])


class ComparesOnGold:
    """Part of a trainer with a ``teacher``, its ``vocab_size``, and the training set's ``gold`` completions.

    All at temperature 1, in evaluation mode, over the tokenizer's columns.
    """

    def confidence_gap(self, records: list[int]) -> Tensor:
        """Mean of p_T(token) - p_S(token) over each record's gold response, in [0, 1], float64 [n]."""
        return self._on_gold(self._gold_of(records), {"gap": self._gap})["gap"].clamp(0, 1)

    def gold_divergence(self, records: list[int]) -> Tensor:
        """KL(teacher || student) of each record's gold response, mean nats per token, float64 [n]."""
        found = self._on_gold(self._gold_of(records), {"kl": self._exact("forward_kl")})
        return found["kl"].clamp(min=0)  # below 0 by rounding alone

    def validation_metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """``val_agreement`` (share of tokens whose likeliest token is the same), ``val_forward_kl`` and
        ``val_reverse_kl`` (nats per token) on the gold responses, over all their tokens.

        Gold responses longer than a sample can be are left out, and counted as ``val_gold_left_out``.
        """
        tokenizer, limit = self.processing_class, self.max_completion_length
        gold = zip(records, gold_completions(records, tokenizer), strict=True)
        short = [(record, ids) for record, ids in gold if len(ids) <= limit]
        left_out = {"val_gold_left_out": len(records) - len(short)} if len(short) < len(records) else {}
        if not short:
            return left_out
        rows = [(render_prompt(tokenizer, record.input_text), ids) for record, ids in short]
        self.check_gold(rows, [record for record, _ in short])
        wanted = {
            "val_agreement": self._agreement,
            "val_forward_kl": self._exact("forward_kl"),
            "val_reverse_kl": self._exact("reverse_kl"),
        }
        lengths = torch.tensor([len(ids) for _, ids in rows], dtype=torch.float64)
        return left_out | {
            name: round(float((means.cpu() * lengths).sum() / lengths.sum()), 6)
            for name, means in self._on_gold(rows, wanted).items()
        }

    def check_gold(self, rows: Sequence[Row], records: Sequence[Record]) -> None:
        """Raise UserError where prompt and gold completion exceed a model's positions."""
        prompts = self._tokenize_prompts([prompt for prompt, _ in rows])[0]
        for what, model in (("student", self._student), ("teacher", self.teacher.model)):
            limit = position_limit(unwrapped(model))
            for ids, (_, gold), record in zip(prompts, rows, records, strict=True):
                if len(ids) + len(gold) - 1 > limit:
                    raise UserError(
                        f"{record.id} has a prompt of {len(ids)} and a gold completion of {len(gold)} "
                        f"tokens, the {what} has {limit} positions: lower dataset.max_input_tokens and "
                        "prepare again with 01_prepare_dataset.py, or use another model"
                    )

    # ------------------------------------------------------------------------------------ what is compared

    def _gap(self, student: Tensor, teacher: Tensor, batch: CompletionBatch) -> Tensor:
        sure, less = (
            token_scores(output_head(model), states, batch.tokens(), vocab_size=self.vocab_size).log_prob
            for states, model in ((teacher, self.teacher.model), (student, self._student))
        )
        return sure.double().exp() - less.double().exp()

    def _agreement(self, student: Tensor, teacher: Tensor, batch: CompletionBatch) -> Tensor:
        own, other = (
            top_one_and_entropy(states, output_head(model), self.vocab_size)[0]
            for states, model in ((student, self._student), (teacher, self.teacher.model))
        )
        return own == other

    def _exact(self, kind: Kind) -> Compared:
        def divergence(student: Tensor, teacher: Tensor, batch: CompletionBatch) -> Tensor:
            heads = output_head(self._student), output_head(self.teacher.model)
            return exact_divergence(student, heads[0], teacher, heads[1], Measure(kind), self.vocab_size)

        return divergence

    # ------------------------------------------------------------------------------------------- the pass

    @property
    def _student(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _gold_of(self, records: list[int]) -> list[Row]:
        return [(self.train_dataset[index]["prompt"], self.gold[index]) for index in records]

    @torch.no_grad()
    def _on_gold(self, rows: Sequence[Row], wanted: dict[str, Compared]) -> dict[str, Tensor]:
        """The mean of every wanted function over each row's tokens, float64 [n]."""
        prompts = self._tokenize_prompts([prompt for prompt, _ in rows])[0]
        batch = CompletionBatch.of(prompts, [ids for _, ids in rows], self.accelerator.device)
        found: dict[str, list[Tensor]] = {name: [] for name in wanted}
        with evaluating(self._student):
            for part in batch.split(self.args.per_device_train_batch_size):
                states = self._student_states(self._student, part), self._teacher_states(part)
                lengths = part.completion_mask.sum(1)
                for name, function in wanted.items():
                    values = part.scatter(function(*states, part).double())
                    found[name].append(values.sum(1) / lengths)
        return {name: torch.cat(pieces) for name, pieces in found.items()}
