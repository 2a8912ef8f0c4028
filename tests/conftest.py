"""Fixtures that all tests share: real data where it is at hand, and tiny random models built on demand."""

import gc
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# Before torch is imported anywhere: tests run two at a time, so each keeps to one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most pipeline tests first: they are long, and should not be what all others wait for."""
    long = Counter(item.path for item in items if item.get_closest_marker("pipeline"))
    items.sort(key=lambda item: -long[item.path])


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported until now stays: trainers collect garbage several times each, and would look through
    the hundreds of thousands of objects of torch, Transformers and SymPy every time.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hypothesis looks for what refers to an object, and warns where that is out of the collector's sight."""
    gc.unfreeze()


def find_shared_data() -> Path | None:
    """Return the folder with real copies of the data sets (finqa/, gsm8k/, math/), None if there is none."""
    folder = Path(os.environ.get("BELLMAN_DATA") or REPO_ROOT.parent / "shared" / "data")
    return folder if (folder / "gsm8k" / "train.jsonl").is_file() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data in the layout of datasets/; the test is skipped without it."""
    folder = find_shared_data()
    if folder is None:
        pytest.skip("real data not found: set BELLMAN_DATA to a folder with finqa/, gsm8k/ and math/")
    return folder


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn up and not rendered: after the head of a PNG comes what they would show, not pixels.

    Rendering is most of the time of a comparison. It is left out where a test is about what stands beside the
    figures, or about equal figures of equal numbers; each figure is rendered in other tests.
    """
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", _save_outline)
    monkeypatch.setattr(Figure, "tight_layout", lambda *_, **__: None)


def _save_outline(figure, path, dpi=100, **_) -> None:
    width, height = (round(dpi * inches).to_bytes(4, "big") for inches in figure.get_size_inches())
    shown = []
    for axis in figure.axes:
        shown.append([axis.get_title(place) for place in ("left", "center", "right")])
        shown.append([axis.get_xlabel(), axis.get_ylabel()])
        shown.append([line.get_xydata().tolist() for line in axis.lines])
        shown.append([(text.get_text(), text.get_position()) for text in axis.texts])
        shown.append(
            [p.get_patch_transform().transform(p.get_path().vertices).tolist() for p in axis.patches]
        )
        shown.append([image.get_array().tolist() for image in axis.images])
        shown.append(axis.get_legend_handles_labels()[1])
        for collection in axis.collections:
            shown.append([shape.vertices.tolist() for shape in collection.get_paths()])
            shown.append(collection.get_offsets().tolist())
    head = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width + height
    Path(path).write_bytes(head + repr(shown).encode())


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a factory: "llama", "qwen2" or "gpt2" -> folder with a random model and its tokenizer.

    Two layers, width 32, 4 heads (2 key-value heads where the architecture groups them), 256 positions,
    float32, one token per byte; made on first use, once a session.
    """
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = _make_tiny_model(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return make


def _make_tiny_model(architecture: str, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

    tokenizer = make_tiny_tokenizer()
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    wide = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    configs = {
        "llama": lambda: LlamaConfig(**common, **wide),
        "qwen2": lambda: Qwen2Config(**common, **wide),
        "gpt2": lambda: GPT2Config(
            **common,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(configs[architecture]())
        # Larger than the usual initial weights, so that logits differ visibly between tokens and contexts.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_tokenizer():
    """Return a tokenizer of one token per UTF-8 byte, left-padding, whose padding token is not EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Plain byte-level BPE without merges: Transformers rebuilds some architectures' tokenizers from the
    # vocabulary and merges alone (Qwen2's, for one), and this kind survives that unchanged.
    vocabulary = ["<pad>", "<eos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
