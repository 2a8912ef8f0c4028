"""A stand-in for vLLM at the boundary where TRL calls it: an engine, its sampling parameters and its server.

TRL's own code (VLLMGeneration, VLLMClient) runs unchanged. The engine loads the folder that it is given,
takes weights under the names of that model alone, as vLLM's AutoWeightsLoader does, and samples token by
token from plain forward passes. `tests/external/test_vllm.py` compares the interface here with vLLM's source
where that is installed.
"""

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl.generation import vllm_client, vllm_generation
from trl.trainer import distillation_trainer

from utils.models.vllm import sampler as vllm_sampling


@dataclass
class Logprob:
    """vllm.logprobs.Logprob."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class SamplingParams:
    """The fields of vllm.SamplingParams that TRL and this project set."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    logit_bias: dict[int, float] | None = None


@dataclass
class CompletionOutput:
    """vllm.outputs.CompletionOutput."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None


@dataclass
class Engine:
    """What became of the engines that a test started, and how they sample.

    sharpness: what an engine's logits are multiplied by: 1 is the policy itself.
    unscored: gives NaN as the log-probability of every fifth token, as vLLM may.
    """

    sharpness: float = 1.0
    unscored: bool = False
    started: list["LLM"] = field(default_factory=list)


engine = Engine()


class LLM:
    """vllm.LLM, with the arguments that TRL gives it."""

    def __init__(
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        quantization: str | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        enable_sleep_mode: bool = False,
        model_impl: str = "auto",
        distributed_executor_backend: str | None = None,
        max_num_batched_tokens: int | None = None,
        logprobs_mode: str = "raw_logprobs",
    ):
        assert not trust_remote_code and quantization is None
        assert logprobs_mode == "processed_logprobs"
        self.settings = {"gpu_memory_utilization": gpu_memory_utilization, "max_num_seqs": max_num_seqs}
        self.max_model_len, self.awake = max_model_len, {"weights", "kv_cache"}
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.loads = 0  # times that the first parameter was loaded
        self.generator = torch.Generator().manual_seed(seed)
        inner = SimpleNamespace(load_weights=self.load_weights)
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=inner))
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=worker),
            model_config=SimpleNamespace(max_model_len=max_model_len),
        )
        engine.started.append(self)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        assert "weights" in self.awake
        own = dict(self.model.named_parameters())
        loaded = set()
        for name, value in weights:
            if name not in own:
                raise ValueError(f"There is no module or parameter named {name!r}")
            assert own[name].shape == value.shape
            with torch.no_grad():
                own[name].copy_(value)
            loaded.add(name)
            self.loads += name == next(iter(own))
        return loaded

    def reset_prefix_cache(self) -> bool:
        return True

    def sleep(self, level: int = 1) -> None:
        assert level == 2
        self.awake = set()

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.awake |= set(tags or ("weights", "kv_cache"))

    def generate(
        self, prompts: list[dict], sampling_params: SamplingParams, *, use_tqdm: bool = True
    ) -> list[SimpleNamespace]:
        assert self.awake == {"weights", "kv_cache"}
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[
                    self._complete(prompt["prompt_token_ids"], sampling_params, number)
                    for number in range(sampling_params.n)
                ],
            )
            for prompt in prompts
        ]

    @torch.no_grad()
    def _complete(self, prompt: list[int], params: SamplingParams, index: int) -> CompletionOutput:
        if self.max_model_len is not None:
            assert len(prompt) + params.max_tokens <= self.max_model_len
        ends = {self.model.generation_config.eos_token_id, *(params.stop_token_ids or [])}
        ids, log_probs = [], []
        while len(ids) < params.max_tokens and (not ids or ids[-1] not in ends):
            logits = engine.sharpness * self.model(torch.tensor([prompt + ids])).logits[0, -1].double()
            for token, bias in (params.logit_bias or {}).items():
                logits[int(token)] += bias  # keys of JSON are text
            scores = (logits / (params.temperature or 1.0)).log_softmax(-1)
            if params.temperature == 0:
                token = int(scores.argmax())
            else:
                token = int(torch.multinomial(scores.exp(), 1, generator=self.generator))
            unscored = engine.unscored and len(ids) % 5 == 4
            log_prob = float("nan") if unscored else scores[token].item()
            log_probs.append({token: Logprob(log_prob, 1 + int((scores > scores[token]).sum()))})
            ids.append(token)
        return CompletionOutput(index, "", ids, None, None if params.logprobs is None else log_probs)


def install(monkeypatch, sharpness: float = 1.0, unscored: bool = False) -> Engine:
    """Let TRL and this project find vLLM, which is the stand-in."""
    found = Engine(sharpness, unscored)
    monkeypatch.setattr(f"{__name__}.engine", found)
    for module in (vllm_generation, vllm_client, distillation_trainer, vllm_sampling):
        monkeypatch.setattr(module, "is_vllm_available", lambda *_, **__: True)
    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)
    monkeypatch.setattr(vllm_sampling, "vllm_version", lambda: "0.30.0")
    monkeypatch.setattr(vllm_sampling, "_samplers", [])
    return found


# --------------------------------------------------------------------------------------------- the server


class Server:
    """What `vllm serve` answers to TRL's client, of an `LLM`; `settings` is its /server_info.

    Weights go to a real server from GPU to GPU; here the client hands them over (see `serve`).
    """

    def __init__(self, model: str):
        self.llm = LLM(model, logprobs_mode="processed_logprobs")
        self.settings = {
            "weight_transfer_config": {"backend": "nccl"},
            "model_config": {"logprobs_mode": "processed_logprobs"},
        }
        self.announced: list[str] = []  # the weights that the update under way brings
        self.requests: list[dict] = []  # for completions
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict) -> dict | None:
        """The answer to a request; None where there is no such path."""
        if path == "/v1/completions":
            return self._completions(body)
        if path == "/update_weights":
            self.announced = body["update_info"]["names"]
        answers = {
            "/health": {},
            "/v1/models": {"data": [{"id": "served"}]},
            "/server_info": {"vllm_config": self.settings},
            "/get_world_size": {"world_size": 1},
            "/start_weight_update": {},
            "/update_weights": {},
            "/finish_weight_update": {},
            "/reset_prefix_cache": {"success": True},
        }
        return answers.get(path.split("?")[0])

    def _completions(self, body: dict) -> dict:
        self.requests.append(body)
        assert body["return_token_ids"] and body["return_tokens_as_token_ids"] and body["model"] == "served"
        known = SamplingParams.__dataclass_fields__
        params = SamplingParams(**{name: value for name, value in body.items() if name in known})
        with self.lock:
            prompts = [{"prompt_token_ids": ids} for ids in body["prompt"]]
            outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return {"choices": [_choice(each, one) for each in outputs for one in each.outputs]}


def _choice(request: SimpleNamespace, output: CompletionOutput) -> dict:
    rows = output.logprobs
    return {
        "prompt_token_ids": request.prompt_token_ids,
        "token_ids": output.token_ids,
        "logprobs": rows
        and {
            "tokens": [f"token_id:{token}" for row in rows for token in row],
            "token_logprobs": [entry.logprob for row in rows for entry in row.values()],
            "top_logprobs": [
                {f"token_id:{token}": entry.logprob for token, entry in row.items()} for row in rows
            ],
        },
    }


def serve(monkeypatch, model: str) -> tuple[Server, str, ThreadingHTTPServer]:
    """A server on a free port, its address, and what ends it. Weights take the way of TRL's client."""
    server = Server(model)

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            answer = server.answer(self.path, json.loads(self.rfile.read(length)) if length else {})
            payload = json.dumps(answer or {}).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = _reply  # noqa: N815 - the names that http.server asks for

        def log_message(self, *_) -> None:
            pass

    def send(iterator, trainer_args) -> None:
        pairs = list(iterator)  # vLLM packs 1 GiB of tensors, without copying any, before it sends
        server.llm.load_weights(pairs)
        server.sent = [name for name, _ in pairs]

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    # The rendezvous and the broadcast are NCCL's: they need GPUs.
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda self, device: None)
    nccl = SimpleNamespace(trainer_send_weights=send)
    monkeypatch.setattr(vllm_client, "NCCLWeightTransferEngine", nccl, raising=False)
    monkeypatch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", dict, raising=False)
    return server, f"http://127.0.0.1:{http.server_port}", http
