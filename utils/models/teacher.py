"""A frozen teacher that scores completions token by token: Q and V of its logits, for the intrinsic reward.

Every distinct prompt of a batch is encoded once and its completions run on top of it (`score_completions`),
in slices of bounded size; full-vocabulary logits exist for a few tokens at a time. Scores do not depend on
how a batch is padded, and a completion that occurs several times in it is scored once.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from utils.data.prompts import token_ids
from utils.frame.files import UserError
from utils.frame.processes import from_main, merge_shares, share
from utils.frame.stage import no_bar
from utils.models.loading import (
    adapter_base,
    input_device,
    load_policy,
    load_tokenizer,
    located,
    other_class,
    reason,
)
from utils.models.prefix.prefix_scoring import padded_parts, states_and_head, token_scores
from utils.models.prefix.shared_prefix import (
    CompletionBatch,
    head_obstacle,
    obstacle,
    position_limit,
    unwrapped,
)
from utils.models.score_cache import ScoreCache, score_key
from utils.models.settings import ModelSection

logger = logging.getLogger(__name__)

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # Accelerate's, over all GPUs
SLICE_TOKENS = 2**15  # prompt and completion tokens run at once, each completion counted with its prompt
PROBES = (
    "Revenue rose 12.5% to $1,234 in 2019.",
    '{"program": "divide(#0, const_100)"}\n\n',
    "naïve – 東京 🙂",
)


@dataclass(frozen=True)
class TeacherScores:
    """What a teacher says of every completion token, [B, C] on the batch's device, 0 where masked.

    q  Q(s_h, a_h), the logit of the chosen token
    v  V(s_h) = alpha * logsumexp(f(s_h, .) / alpha), over the tokenizer's tokens

    float32 (float64 from a float64 model, unless found in a cache); q - v = alpha * log pi_hat(a_h | s_h), at
    most 0 up to rounding.
    """

    q: Tensor
    v: Tensor


@dataclass(frozen=True)
class TokenRow:
    """One completion without padding: int64 tokens as bytes, so that equal ones are found by hashing."""

    prompt: bytes
    completion: bytes

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.frombuffer(self.prompt, np.int64), np.frombuffer(self.completion, np.int64)

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return (len(self.prompt) + len(self.completion)) // 8


class Teacher:
    """A causal language model in evaluation mode that is only read. `load` makes one from a configuration."""

    def __init__(
        self,
        model: nn.Module,
        vocab_size: int,
        *,
        alpha: float = 1.0,
        cache: ScoreCache | None = None,
        name: str = "teacher",
    ):
        """`vocab_size` is len(tokenizer): the logit columns beyond it are padding and do not count.

        `alpha` above 0 is the temperature at which the logits are a soft Q; no cache is one of capacity 0.
        `name` is for messages. Set `across_processes` where every process has the same batches scored: they
        then share the work, and the first one's cache counts.
        """
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be above 0, found {alpha}")
        self.model = model.eval().requires_grad_(False)
        self.vocab_size, self.alpha, self.name = vocab_size, float(alpha), name
        self.cache = ScoreCache(0) if cache is None else cache
        self.across_processes = False
        self._warned = False

    @classmethod
    def load(
        cls,
        section: ModelSection,
        student_tokenizer: PreTrainedTokenizerBase,
        *,
        alpha: float = 1.0,
        cache: ScoreCache | None = None,
    ) -> "Teacher":
        """Load `section.teacher_name_or_path`: a full model or adapter folder, or a hub name.

        Raises UserError where it is missing or damaged, is no causal language model, has another tokenizer
        than the student, or is to lie on a device that is not there.
        """
        name = section.teacher_name_or_path
        path = _located(name, "teacher")
        _check_architecture(name, path)
        tokenizer = load_tokenizer(name, section)
        check_same_tokenizer(student_tokenizer, tokenizer, name)
        settings = replace(section, name_or_path=name, load_in_4bit=section.teacher_load_in_4bit)
        try:
            model, _ = load_policy(path, settings, device_map=_device_map(section.teacher_device_map))
        except (OSError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
            raise _unloadable(name, error) from None
        _check_model(model, len(tokenizer), name)
        return cls(model, len(tokenizer), alpha=alpha, cache=cache, name=str(name))

    @functools.cached_property
    def identity(self) -> str:
        """A hash of what scores depend on besides the tokens: weights, formats, configuration, alpha."""
        config = self.model.config.to_dict()
        about = {key: value for key, value in config.items() if key not in ("_name_or_path", "name_or_path")}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        digest.update(f"{type(unwrapped(self.model)).__name__} {self.vocab_size} {self.alpha!r}".encode())
        for name, tensor in sorted(_weights(self.model).items()):
            if isinstance(tensor, Tensor):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def score(self, batch: CompletionBatch, progress: Callable[..., Iterable] = no_bar) -> TeacherScores:
        """Score every unmasked completion token. A row whose completion is masked entirely gets zeros.

        Position ids count real tokens, whatever `batch.positions` says. The cache, where there is one, is
        asked once for each distinct completion of the batch. ``progress``: as `StageContext.progress`.

        Raises UserError where a prompt and completion exceed the teacher's positions, hold a token that the
        tokenizer lacks, or get logits that are not finite, and ValueError where prompts are not padded on the
        left or completions not on the right.
        """
        rows = _rows(batch)
        self._check_rows(rows)
        distinct = [row for row in dict.fromkeys(rows) if row.completion]
        keys = (
            {row: score_key(self.identity, *row.arrays()) for row in distinct} if self.cache.capacity else {}
        )
        cached = {row: self.cache.get(key) for row, key in keys.items()}
        found = {row: scores for row, scores in cached.items() if scores is not None}
        missing = [row for row in distinct if row not in found]
        # Prompts of similar length run together, completions of one prompt side by side.
        missing.sort(key=lambda row: (len(row.prompt), row.prompt))
        if self.across_processes:
            # A cache that is shared between runs may have grown since another process read it.
            found, missing = from_main((found, missing))
        fresh: dict[TokenRow, np.ndarray] = {}
        parts = [missing[part] for part in padded_parts([row.length for row in missing], SLICE_TOKENS)]
        for part, scores in zip(parts, self._score_parts(parts, progress), strict=True):
            fresh |= zip(part, scores, strict=True)
        self._check_finite(rows, fresh)
        for row in fresh if keys else ():
            self.cache.put(keys[row], fresh[row])
        return _spread(rows, found | fresh, batch.completion_mask)

    # ------------------------------------------------------------------------------------------- the pass

    def _score_parts(
        self, parts: list[list[TokenRow]], progress: Callable[..., Iterable]
    ) -> list[list[np.ndarray]]:
        own = share(parts) if self.across_processes else parts
        scores = [self._score_slice(part) for part in progress(own, description="teacher")]
        return merge_shares(scores) if self.across_processes else scores

    def _score_slice(self, rows: list[TokenRow]) -> list[np.ndarray]:
        """Return Q and V of each row, float [2, C_i]."""
        reason = obstacle(self.model)
        if reason and not self._warned:
            logger.warning("teacher %s scores without shared prefixes: %s", self.name, reason)
            self._warned = True
        if head_obstacle(self.model):  # the logits of all rows would be held at once
            return [scores for row in rows for scores in self._q_and_v([row])]
        return self._q_and_v(rows)

    def _batch(self, rows: list[TokenRow]) -> CompletionBatch:
        prompts, completions = zip(*(map(np.ndarray.tolist, row.arrays()) for row in rows), strict=True)
        return CompletionBatch.of(prompts, completions, input_device(self.model))

    def _q_and_v(self, rows: list[TokenRow]) -> list[np.ndarray]:
        batch = self._batch(rows)
        states, head = states_and_head(self.model, batch)
        scores = token_scores(
            head, states, batch.tokens(), temperature=self.alpha, vocab_size=self.vocab_size
        )
        values = (self.alpha * torch.stack([scores.logit, scores.logsumexp])).cpu().numpy()
        return np.split(values, np.cumsum(batch.completion_mask.sum(1).tolist())[:-1], axis=1)

    # -------------------------------------------------------------------------------------------- refusals

    def _check_rows(self, rows: list[TokenRow]) -> None:
        limit = position_limit(self.model)
        # The last token is predicted, not read, but a pass over whole rows runs it as well.
        unread = 1 if obstacle(self.model) is None else 0
        for number, row in enumerate(rows):
            prompt, completion = row.arrays()
            if len(completion) and row.length - unread > limit:
                raise UserError(
                    f"completion {number} of the batch has a prompt of {len(prompt)} tokens and "
                    f"{len(completion)} of its own, teacher {self.name} has {limit} positions: lower "
                    "dataset.max_input_tokens or generation.max_new_tokens, or set another "
                    "model.teacher_name_or_path"
                )
            largest = max(prompt.max(initial=0), completion.max(initial=0))
            if largest >= self.vocab_size:
                raise UserError(
                    f"completion {number} of the batch holds token {largest}, the tokenizer of teacher "
                    f"{self.name} ends at {self.vocab_size - 1}: the policy sampled a padding row of its "
                    "vocabulary; train it longer (03_sft_train.py) or lower generation.top_p"
                )

    def _check_finite(self, rows: list[TokenRow], fresh: dict[TokenRow, np.ndarray]) -> None:
        def finite(scores: np.ndarray) -> bool:
            return bool(np.isfinite(scores).all())

        broken = {row for row, scores in fresh.items() if not finite(scores)}
        if broken:
            # Rows that run side by side catch each other's NaN (0 times NaN): each is tried alone.
            broken = {row for row in broken if not finite(self._score_slice([row])[0])} or broken
            numbers = [number for number, row in enumerate(rows) if row in broken]
            more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
            raise UserError(
                f"teacher {self.name} gave logits that are not finite for completions {numbers[:8]}{more} of "
                "the batch: check its weights, or set model.torch_dtype: float32"
            )


# ------------------------------------------------------------------------------------------ rows and slices


def _rows(batch: CompletionBatch) -> list[TokenRow]:
    """Return the batch's rows without their padding."""
    prompt_mask, mask = batch.prompt_mask.bool().cpu().numpy(), batch.completion_mask.bool().cpu().numpy()
    if (prompt_mask[:, :-1] & ~prompt_mask[:, 1:]).any() or not prompt_mask[:, -1:].all():
        raise ValueError("prompts must be padded on the left and hold at least one token")
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("completions must be padded on the right")
    prompts, completions = batch.prompt_ids.cpu().numpy(), batch.completion_ids.cpu().numpy()
    return [
        TokenRow(prompt[kept].astype(np.int64).tobytes(), completion[chosen].astype(np.int64).tobytes())
        for prompt, kept, completion, chosen in zip(prompts, prompt_mask, completions, mask, strict=True)
    ]


def _spread(rows: list[TokenRow], scores: dict[TokenRow, np.ndarray], mask: Tensor) -> TeacherScores:
    """Lay the rows' scores out as [B, C]."""
    dtype = np.result_type(np.float32, *{array.dtype for array in scores.values()})
    laid = np.zeros((2, *mask.shape), dtype)
    for number, row in enumerate(rows):
        if row.completion:
            laid[:, number, : len(row.completion) // 8] = scores[row]
    return TeacherScores(*torch.from_numpy(laid).to(mask.device))


# -------------------------------------------------------------------------------------- what can be a teacher


def check_same_tokenizer(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, name: str
) -> None:
    """Raise UserError unless both turn text into the same tokens: a token is scored by its id.

    Compares vocabularies, beginning and end of sequence, and the encoding of a few texts. The padding token
    may differ: it is masked wherever it stands for padding.
    """
    differences = []
    own, other = student.get_vocab(), teacher.get_vocab()
    if own != other:
        changed = len(dict(own.items() ^ other.items()))
        differences.append(f"{len(own)} and {len(other)} tokens, {changed} of them not the same")
    for kind in ("bos_token", "eos_token"):
        if getattr(student, f"{kind}_id") != getattr(teacher, f"{kind}_id"):
            differences.append(f"{kind} {getattr(student, kind)!r} and {getattr(teacher, kind)!r}")
    for text, own, other in zip(PROBES, token_ids(student, PROBES), token_ids(teacher, PROBES), strict=True):
        if own != other:
            differences.append(f"they split {text!r} differently")
    if differences:
        raise UserError(
            f"the tokenizers of student {student.name_or_path} and teacher {name} differ ({differences[0]}): "
            "set model.teacher_name_or_path to a model with the student's tokenizer"
        )


def _device_map(wanted: str) -> str | dict[str, str] | None:
    """Transformers' ``device_map`` for the setting: None beside the policy, a strategy, or one device.

    Raises UserError for anything else, and for a GPU that is not there.
    """
    if wanted in ("", *DEVICE_MAPS):
        return wanted or None
    known = f"one of {', '.join(DEVICE_MAPS)}, cpu or cuda:N"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"model.teacher_device_map is {wanted!r}: set it to {known}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"model.teacher_device_map is {wanted!r}, and there are {torch.cuda.device_count()} GPUs: set it "
            f"to {known}"
        )
    return {"": wanted}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by name; those that lie on disk, or wait on the CPU, are fetched."""
    found = model.state_dict()
    return get_state_dict_offloaded_model(model) if any(each.is_meta for each in found.values()) else found


def _located(name: str, what: str) -> str:
    try:
        return located(name)
    except UserError:
        raise UserError(f"{name}: no such folder ({what}); check model.teacher_name_or_path") from None


def _unloadable(name: str, error: Exception) -> UserError:
    return UserError(f"{name}: the teacher could not be loaded ({reason(error)})")


def _check_architecture(name: str, path: str) -> None:
    """Raise UserError for a folder or hub name that holds another kind of model; reads no weights."""
    try:
        base = adapter_base(path)
        config = AutoConfig.from_pretrained(
            _located(base, f"base model for teacher {name}") if base else path, trust_remote_code=False
        )
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file brings a library to raise
        raise _unloadable(name, error) from None
    if other := other_class(config):
        raise UserError(
            f"{name}: the teacher must be a causal language model, this is {other}; "
            "set model.teacher_name_or_path"
        )


@torch.no_grad()
def _check_model(model: PreTrainedModel, vocab_size: int, name: str) -> None:
    """Raise UserError where the model lacks rows for the tokenizer, or sees tokens that come later."""
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < vocab_size:
        raise UserError(f"{name}: the teacher has {rows} embeddings for a tokenizer of {vocab_size} tokens")
    device = input_device(model)
    first, second = model(input_ids=torch.tensor([[0, 1, 1], [0, 2, 2]], device=device)).logits[:, 0]
    if bool((first - second).abs().max() > 16 * torch.finfo(first.dtype).eps * first.abs().max()):
        raise UserError(f"{name}: the teacher must be a causal language model, this one reads ahead")
