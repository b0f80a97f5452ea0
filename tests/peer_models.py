"""Models that no one here wrote, small and with random weights, and some in everyday styles.

torchvision's, timm's and transformers' are built where those packages are installed; a test that
builds one is skipped elsewhere. Nothing is downloaded.

    @pytest.mark.parametrize("peer", PEER_MODELS, ids=str)
    def test_…(peer):
        model, inputs, target, loss_fn = peer.build()
        loss_fn(run(model, inputs), target).backward()
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.benchmarks.networks import resnet

N, CLASSES, TOKENS, LENGTH = 16, 10, 40, 8


class Built(NamedTuple):
    """A model in train mode and a batch for it."""

    model: nn.Module
    inputs: Any  # as `curvature.passes.run` takes them
    target: Tensor
    loss_fn: Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class PeerModel:
    """How to build a model, and what is known of it.

    Attributes:
        name: Which it is; its first word is the package, "plain" for torch alone.
        make: Builds the model.
        data: Draws inputs and target.
        classifier: Name of the layer whose output the model returns.
        loss_fn: The mean loss of the model's output, whatever that is.
        norm: Class of the normalisation that the classifier's input comes straight from.
        symbolic: Whether torch.fx can trace it.
    """

    name: str
    make: Callable[[], nn.Module]
    data: Callable[[], tuple[Any, Tensor]]
    classifier: str
    loss_fn: Callable[[Any, Tensor], Tensor] = functional.cross_entropy
    norm: str | None = None
    symbolic: bool = True

    def __str__(self) -> str:
        return self.name

    def build(self, seed: int = 0) -> Built:
        """Build model and batch, the same each time; the global random state stays as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Built(self.make(), *self.data(), self.loss_fn)


def peer(package: str) -> Any:
    """Import torchvision, timm, transformers or a module of theirs, or skip the test."""
    _import_torchvision()
    return pytest.importorskip(package, reason="an optional peer")


# An operator's definition lasts as long as this object.
_OPERATORS: list[torch.library.Library] = []


@functools.cache
def _import_torchvision() -> None:
    """Import torchvision, also the CUDA build that PyPI has, beside a torch for CPUs alone.

    Its compiled operators do not load there, and its import then fails for want of the two that it
    describes to the compiler. They are declared in their place; no model here calls them. timm and
    transformers import torchvision too.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # for transformers and timm, which read it when imported
    try:
        __import__("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _OPERATORS.append(library)
        __import__("torchvision")


def images(size: int = 32) -> tuple[Tensor, Tensor]:
    return torch.randn(N, 3, size, size), torch.randint(CLASSES, (N,))


def sentences() -> tuple[Tensor, Tensor]:
    return torch.randint(TOKENS, (N, LENGTH)), torch.randint(CLASSES, (N,))


def named_sentences() -> tuple[dict[str, Tensor], Tensor]:
    tokens, target = sentences()
    return {"input_ids": tokens}, target


def text() -> tuple[dict[str, Tensor], Tensor]:
    tokens = torch.randint(TOKENS, (N, LENGTH))
    return {"input_ids": tokens}, tokens


def logits_loss(output: Any, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.logits, target)


def next_token_loss(output: Any, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def torchvision_model(name: str, **settings: Any) -> nn.Module:
    return getattr(peer("torchvision.models"), name)(num_classes=CLASSES, **settings)


def torchvision_resnet() -> nn.Module:
    """One block in each of the first two stages; the wide ones would take most of the time."""
    model = torchvision_model(
        "ResNet", block=peer("torchvision.models.resnet").BasicBlock, layers=[1, 1, 1, 1]
    )
    model.layer3, model.layer4 = nn.Identity(), nn.Identity()
    model.fc = nn.Linear(128, CLASSES)
    return model


def convnext() -> nn.Module:
    block = peer("torchvision.models.convnext").CNBlockConfig
    return torchvision_model("ConvNeXt", block_setting=[block(16, 32, 1), block(32, None, 1)])


def torchvision_vit() -> nn.Module:
    model = torchvision_model(
        "VisionTransformer", image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16,
        mlp_dim=32,
    )  # fmt: skip
    nn.init.normal_(model.heads.head.weight, std=0.1)  # zeros let no gradient through
    return model


def timm_model(name: str, **settings: Any) -> nn.Module:
    return peer("timm").create_model(name, num_classes=CLASSES, **settings)


def transformer(model: str, config: str, **settings: Any) -> nn.Module:
    transformers = peer("transformers")
    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def gpt2() -> nn.Module:
    return transformer(
        "GPT2LMHeadModel", "GPT2Config", n_layer=2, n_head=2, n_embd=16, vocab_size=TOKENS,
        n_positions=LENGTH, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def bert() -> nn.Module:
    return transformer(
        "BertForSequenceClassification", "BertConfig", hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, vocab_size=TOKENS,
        max_position_embeddings=LENGTH, num_labels=CLASSES,
    )  # fmt: skip


def transformers_vit() -> nn.Module:
    return transformer(
        "ViTForImageClassification", "ViTConfig", hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=CLASSES,
    )  # fmt: skip


class LSTMClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 12)
        self.lstm = nn.LSTM(12, 16, batch_first=True)
        self.output = nn.Linear(16, CLASSES)

    def forward(self, tokens):
        _, (state, _) = self.lstm(self.embedding(tokens))
        return self.output(state[-1])


class SharedLayer(nn.Module):
    """One hidden layer applied three times, between two that are not shared."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = (
            nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES),
        )  # fmt: skip

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for _ in range(3):
            x = torch.relu(self.shared(x))
        return self.head(x)


PEER_MODELS = [
    PeerModel("torchvision ResNet", torchvision_resnet, images, "fc"),
    PeerModel(
        "torchvision mobilenet_v2",
        lambda: torchvision_model("mobilenet_v2", width_mult=0.25),
        images,
        "classifier.1",
    ),
    PeerModel("torchvision ConvNeXt", convnext, images, "classifier.2", norm="LayerNorm"),
    PeerModel(
        "torchvision VisionTransformer",
        torchvision_vit,
        images,
        "heads.head",
        norm="LayerNorm",
    ),
    PeerModel(  # pre-activation; its classifier is a 1×1 convolution
        "timm resnetv2",
        lambda: timm_model(
            "resnetv2_18", channels=(16, 32, 64, 128), layers=(1, 1, 1, 1), stem_chs=16
        ),
        images,
        "head.fc",
    ),
    PeerModel(
        "timm vit_tiny",
        lambda: timm_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2
        ),
        images,
        "head",
        norm="LayerNorm",
    ),
    PeerModel(  # its Linear is a subclass
        "timm mobilenetv3", lambda: timm_model("mobilenetv3_small_050"), images, "classifier"
    ),
    PeerModel(  # lm_head's weight is wte's
        "transformers GPT2", gpt2, text, "lm_head", next_token_loss, "LayerNorm", symbolic=False
    ),
    PeerModel(
        "transformers BERT",
        bert,
        named_sentences,
        "classifier",
        logits_loss,
        symbolic=False,
    ),
    PeerModel(
        "transformers ViT",
        transformers_vit,
        images,
        "classifier",
        logits_loss,
        "LayerNorm",
        symbolic=False,
    ),
    PeerModel("plain LSTM", LSTMClassifier, sentences, "output"),
    PeerModel(
        "plain shared layer",
        SharedLayer,
        lambda: (torch.randn(N, 12), torch.randint(CLASSES, (N,))),
        "head",
    ),
    PeerModel("plain resnet", lambda: resnet(8), images, "8"),
]
