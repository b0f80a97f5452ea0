"""Networks and data for findings: sound ones of many families, and ones with one fault each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lca_widgets.data import digits
from lca_widgets.models import mlp
from tests.benchmarks.networks import resnet

Batch = tuple[Tensor, Tensor]
LOSS = nn.CrossEntropyLoss()
CLASSES = 10


def digits_batch(n: int = 512) -> Batch:
    """The first digits as 64 features."""
    split = digits().train.first(n)
    return split.x, split.y


def pictures(n: int = 128, size: int = 16) -> Batch:
    """Digits as pictures of three channels, ``size`` pixels wide."""
    x, y = digits_batch(n)
    images = functional.interpolate(x.reshape(-1, 1, 8, 8), size=(size, size), mode="bilinear")
    gains = torch.tensor([1.0, 0.7, -0.5]).reshape(1, 3, 1, 1)
    noise = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images * gains + 0.3 * noise, y


def tokens(n: int = 64, length: int = 16, vocabulary: int = 32) -> Batch:
    """Sequences that count up modulo the vocabulary, and the next token at each position."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(vocabulary, (n, 1), generator=generator)
    stride = torch.randint(1, 4, (n, 1), generator=generator)
    sequence = (start + stride * torch.arange(length + 1)) % vocabulary
    return sequence[:, :-1], sequence[:, 1:]


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over samples and positions."""
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def gradient_descent(
    model: nn.Module,
    batch: Batch,
    steps: int,
    rate: float,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = LOSS,
    adam: bool = False,
) -> nn.Module:
    """Train in place on one batch, in train mode."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = (
        torch.optim.Adam(parameters, lr=rate) if adam else torch.optim.SGD(parameters, lr=rate)
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(batch[0]), batch[1]).backward()
        optimizer.step()
    return model


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv, twice, beside a shortcut that nothing normalises."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.relu(self.norm1(x)))
        return x + self.conv2(functional.relu(self.norm2(h)))


def pre_activation_resnet(blocks: int = 4, width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        *(PreActivationBlock(width) for _ in range(blocks)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, CLASSES),
    )


class ResidualBlock(nn.Module):
    """Two linear layers with BN beside a shortcut, a ReLU behind the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width, bias=False)
        self.linear2 = nn.Linear(width, width, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.linear1(x)))
        return functional.relu(x + self.norm2(self.linear2(h)))


def residual_mlp(blocks: int, width: int = 32, *, final: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        *(ResidualBlock(width) for _ in range(blocks)),
        *([] if final is None else [final]),
        nn.Linear(width, CLASSES),
    )


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project to a linear bottleneck."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        InvertedResidual(8, 8, 1),
        InvertedResidual(8, 16, 2),
        InvertedResidual(16, 16, 1),
        InvertedResidual(16, 24, 2),
        InvertedResidual(24, 24, 1),
        nn.Conv2d(24, 64, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


class ConvNextBlock(nn.Module):
    """Depthwise convolution, layer normalisation, two linear layers, a layer scale of 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.scale * self.project(functional.gelu(self.expand(h)))
        return x + h.permute(0, 3, 1, 2)


def convnext(blocks: int = 4, width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 4),
        *(ConvNextBlock(width) for _ in range(blocks)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(width),
        nn.Linear(width, CLASSES),
    )


class Attention(nn.Module):
    """Pre-norm self-attention and a two-layer network, each beside a shortcut."""

    def __init__(self, width: int, *, causal: bool, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 32, blocks: int = 4, patches: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(0.02 * torch.randn(1, patches, width))
        self.blocks = nn.Sequential(*(Attention(width, causal=False) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class LanguageModel(nn.Module):
    """GPT-2 in small: N(0, 0.02) weights, the output layer's tied to the embedding."""

    def __init__(self, vocabulary: int = 32, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Attention(width, causal=True) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.position)))


class Recurrent(nn.Module):
    """An LSTM between two linear layers; it reads pictures row by row."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(torch.relu(self.embed(x.reshape(-1, 8, 8))))
        return self.head(states[:, -1])


class Shared(nn.Module):
    """One hidden layer, used three times."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(64, width), nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for _ in range(3):
            x = x + torch.relu(self.hidden(x))
        return self.head(x)


def convolutional() -> nn.Sequential:
    """LeNet's plan with ReLU, PyTorch's own initialisation."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


def autoencoder() -> nn.Sequential:
    """64 – 32 – 8 – 32 – 64, to be trained with the squared error."""
    return nn.Sequential(
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 8),
        nn.Linear(8, 32),
        nn.ReLU(),
        nn.Linear(32, 64),
    )


def classifier(
    *, depth: int = 6, init: str = "he", gain: float = 1.0, norm: str = "none", seed: int = 0
) -> nn.Sequential:
    """A network for digits, 64 units wide; its layers are linear1 … linearK."""
    return mlp(64, CLASSES, depth=depth, width=64, init=init, gain=gain, norm=norm, seed=seed)


def dominated(batch: Batch, *, depth: int = 6, seed: int = 0) -> nn.Sequential:
    """Huge steps have blown up weights whose scale BN takes out again; the last one is frozen."""
    model = classifier(depth=depth, norm="batch-fixed", seed=seed)
    model.get_submodule(f"linear{depth}").requires_grad_(False)
    gradient_descent(model, batch, steps=40, rate=1e6)
    return model


def killed_by_training(batch: Batch, *, seeds: int = 20) -> Iterator[nn.Sequential]:
    """Steps too large for the learnable shifts of BN: behind them hardly a ReLU is active.

    Such a training is chaotic. It kills most networks, but which, and which of them only almost, is
    up to rounding and so to the processor: these are the ones that no gradient gets through.
    """
    for seed in range(seeds):
        model = classifier(norm="batch", seed=seed)
        gradient_descent(model, batch, steps=100, rate=30.0)
        first = model.get_submodule("linear1").get_parameter("weight").grad
        if first is not None and not first.any():
            yield model


def with_dead_layer(layer: str = "linear3") -> nn.Sequential:
    """A layer whose weights are all negative, behind a ReLU: its own ReLU is never active."""
    model = classifier()
    with torch.no_grad():
        weight = model.get_submodule(layer).get_parameter("weight")
        weight.copy_(-weight.abs())
    return model


def with_nan(layer: str = "linear3") -> nn.Sequential:
    model = classifier()
    with torch.no_grad():
        model.get_submodule(layer).get_parameter("weight")[0, 0] = torch.nan
    return model


@dataclass(frozen=True)
class Case:
    """A network that trains well, and how it is trained."""

    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    rate: float = 0.05
    adam: bool = False
    loss: Callable[[Tensor, Tensor], Tensor] = LOSS


def reconstruction() -> Batch:
    x, _ = digits_batch()
    return x, x


SOUND = {
    "plain, He": Case(lambda: classifier(depth=6), digits_batch),
    "plain, He, 20 layers": Case(lambda: classifier(depth=20), digits_batch, rate=0.02),
    "plain, PyTorch's scale, 5 layers": Case(
        lambda: classifier(depth=5, init="lecun"), digits_batch, rate=0.1
    ),
    "BN, 10 layers": Case(lambda: classifier(depth=10, norm="batch"), digits_batch),
    "BN, 20 layers": Case(lambda: classifier(depth=20, norm="batch"), digits_batch),
    "residual": Case(lambda: residual_mlp(3), digits_batch),
    "residual, final BN": Case(
        lambda: residual_mlp(10, final=nn.BatchNorm1d(32)), digits_batch, rate=0.1
    ),
    "ResNet-8": Case(lambda: resnet(8), pictures),
    "pre-activation ResNet": Case(pre_activation_resnet, pictures, rate=0.1),
    "MobileNet": Case(mobilenet, pictures, rate=0.1),
    "ConvNeXt": Case(convnext, pictures, rate=1e-3, adam=True),
    "ViT": Case(VisionTransformer, pictures, rate=1e-3, adam=True),
    "LeNet": Case(convolutional, pictures, rate=1e-3, adam=True),
    "GPT": Case(LanguageModel, tokens, rate=1e-3, adam=True, loss=token_loss),
    "LSTM": Case(Recurrent, digits_batch, rate=1e-2, adam=True),
    "shared layer": Case(Shared, digits_batch),
    "autoencoder": Case(autoencoder, reconstruction, rate=1e-3, adam=True, loss=nn.MSELoss()),
}
