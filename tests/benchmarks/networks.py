"""The networks that costs are measured on."""

from torch import Tensor, nn
from torch.nn import functional

from lca_widgets.models import mlp


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters, as in the CIFAR ResNets."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.new_channels = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return functional.relu(self.norm2(self.conv2(h)) + shortcut)


def resnet(depth: int) -> nn.Sequential:
    """Return the CIFAR ResNet of ``depth`` = 6n+2 layers: widths 16, 32, 64, ten classes."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    width = 16
    for outputs in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            layers.append(Block(width, outputs, stride=outputs // width))
            width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def network(name: str) -> tuple[nn.Module, tuple[int, ...], int]:
    """Return a network, the shape of one sample and the size of the batch it is measured with."""
    if name.startswith("ResNet-"):
        return resnet(int(name.removeprefix("ResNet-"))), (3, 32, 32), 128
    depth, width, features = {"MLP 784–10×256–10": (11, 256, 784), "MLP 64–9×64–10": (10, 64, 64)}[
        name
    ]
    return mlp(features, 10, depth=depth, width=width), (features,), 1024
