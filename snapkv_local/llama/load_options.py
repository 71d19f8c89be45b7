"""How a model is loaded, from a command's options to the arguments of Llama."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapkv_local import hardware
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ConfigError

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

KV_TYPE = "f16"  # where none is given


@dataclass(frozen=True)
class DraftOptions:
    """What guesses the tokens of answers.

    Attributes:
        model: file of a smaller model; None for the conversation itself, or the model's heads.
        heads: the model's own prediction heads guess.
        n_max, n_min, p_min: as ModelDraft, HeadDraft and PromptLookup have them; None for their
            defaults.
    """

    model: Path | None = None
    n_max: int | None = None
    n_min: int | None = None
    p_min: float | None = None
    heads: bool = False

    def numbers(self) -> dict[str, Any]:
        """Those that are given, by name."""
        found = {"n_max": self.n_max, "n_min": self.n_min, "p_min": self.p_min}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its file, and the factor that its products get."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class LoadOptions:
    """What is said of a model beside its file and what is compressed.

    Attributes:
        ctx: longest conversation, in tokens; None or 0 for the model's.
        kv_type: of the cache, "q8_0", or "q8_0/f16" for K and V; None for f16, or for what a document
            has that is asked about.
        gpu_layers: layers on GPUs, -1 or "all", or "auto": all if there is a GPU.
        main_gpu: number of the GPU that computes alone; None for all GPUs.
        tensor_split: the shares of the GPUs, which may have any sum; None for shares by free memory.
        threads: None for all cores.
        no_mmap: read files into memory, instead of mapping them.
        adapter: added to the model's weights; None for none.
        chat_format: for a model without a chat template.
        chat_template: in the place of the model's own: Jinja, or a name of llama.cpp's.
        drafts: what guesses the tokens of answers; None for nothing.
    """

    ctx: int | None = None
    kv_type: str | None = None
    gpu_layers: int | str = "auto"
    main_gpu: int | None = None
    tensor_split: tuple[float, ...] | None = None
    threads: int | None = None
    no_mmap: bool = False
    adapter: Adapter | None = None
    chat_format: str | None = None
    chat_template: str | None = None
    drafts: DraftOptions | None = None

    def n_threads(self) -> int:
        """Threads that compute."""
        return self.threads or hardware.n_cores()

    def arguments(self) -> dict[str, Any]:
        """Of Llama, beside the file and snapkv.

        Raises:
            ConfigError: K and V of different types on a GPU; GPUs that are not there.
        """
        # only now: it loads the native library
        from snapkv_local.native import support  # isort: skip

        import llama_cpp

        type_k, type_v = map(support.ggml_type, split_kv_type(self.kv_type or KV_TYPE))
        can_offload = llama_cpp.llama_supports_gpu_offload()
        gpu_layers = self.gpu_layers
        if gpu_layers == "auto":
            gpu_layers = "all" if can_offload else 0
        if type_k != type_v and gpu_layers != 0 and can_offload:
            raise ConfigError(
                f"K and V in {self.kv_type}",
                "are of different types, which is tested on the CPU only",
                "give --kv-type, or --gpu-layers 0",
            )
        return {
            **self._gpus(),
            **self._adapter(),
            "n_ctx": self.ctx or 0,
            "n_threads": self.n_threads(),
            "n_threads_batch": self.n_threads(),
            "n_gpu_layers": -1 if gpu_layers == "all" else gpu_layers,
            "type_k": type_k,
            "type_v": type_v,
            "flash_attn": True,
            "use_mmap": not self.no_mmap,
            "chat_format": self.chat_format,
            "verbose": False,
            **({"load_mtp": True} if self.drafts is not None and self.drafts.heads else {}),
        }

    def _adapter(self) -> dict[str, Any]:
        if self.adapter is None:
            return {}
        return {"lora_path": str(self.adapter.path), "lora_scale": self.adapter.scale}

    def _gpus(self) -> dict[str, Any]:
        """Which GPUs compute."""
        if self.main_gpu is None and self.tensor_split is None:
            return {}
        import llama_cpp

        from snapkv_local.native.devices import devices

        if self.tensor_split is not None and self.main_gpu is not None:
            raise ConfigError(
                "--tensor-split and --main-gpu",
                "contradict each other: shares are for several GPUs, and --main-gpu is for one",
                "give one of the two",
            )
        wanted = len(self.tensor_split or ()) or (self.main_gpu or 0) + 1
        names = [device.name for device in devices() if device.kind in ("gpu", "igpu")]
        if wanted > len(names):
            option = "--main-gpu" if self.tensor_split is None else "--tensor-split"
            raise ConfigError(
                option,
                f"is for {wanted} GPUs or more, and there are {len(names)} here"
                + (f": {', '.join(names)}" if names else ""),
                "see what `snapkv-local doctor` lists, or leave it out",
            )
        if self.main_gpu is not None:
            return {"main_gpu": self.main_gpu, "split_mode": llama_cpp.LLAMA_SPLIT_MODE_NONE}
        return {"tensor_split": list(self.tensor_split or ())}

    def give_drafts(self, llm: Llama, config: SnapKVConfig | None) -> None:
        """Let a model that was loaded so have its drafts; a smaller model's settings are its own.

        Args:
            llm: the model, which closes the smaller one, too.
            config: its compression; a vault is not for drafts.

        Raises:
            SnapKVError: the smaller model cannot be loaded, or cannot draft for it.
        """
        from snapkv_local.llama.drafting import ModelDraft, PromptLookup
        from snapkv_local.llama.heads import HeadDraft

        drafts = self.drafts
        if drafts is None:
            return
        if drafts.heads:
            llm.set_draft_model(HeadDraft(**drafts.numbers()))
            return
        if drafts.model is None:
            llm.set_draft_model(PromptLookup(**drafts.numbers()))
            return
        own = None if config is None else replace(config, vault="off")
        arguments = replace(self, ctx=llm.n_ctx(), chat_format=None, adapter=None).arguments()
        draft = type(llm)(str(drafts.model), snapkv=own, n_parallel=llm.n_parallel, **arguments)
        llm._stack.callback(draft.close)
        llm.set_draft_model(ModelDraft(draft, **drafts.numbers()))


def split_kv_type(kv_type: str) -> tuple[str, str]:
    """The types of K and V, of "q8_0" or "q8_0/f16"."""
    k, _, v = kv_type.partition("/")
    return k, v or k
