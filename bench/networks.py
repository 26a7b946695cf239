"""Networks, written once for both libraries: LeNet, a perceptron, ResNet, MobileNetV2, a Transformer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from .library import Library


def lenet(library: Library) -> Any:
    """LeNet-5 in its tutorial form: (N, 1, 32, 32) images to (N, 10) logits, 61,706 parameters."""
    nn = library.nn
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def mlp(library: Library) -> Any:
    """784-256-10."""
    nn = library.nn
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def resnet18(library: Library, small: bool = False) -> Any:
    """ResNet-18 for 1,000 classes, 11,689,512 parameters; `small`: as `resnet`."""
    return resnet(library, (2, 2, 2, 2), bottleneck=False, small=small)


def resnet50(library: Library) -> Any:
    """ResNet-50 for 1,000 classes with the stride in the 3×3 convolutions, 25,557,032 parameters."""
    return resnet(library, (3, 4, 6, 3), bottleneck=True)


def resnet(library: Library, blocks: Sequence[int], bottleneck: bool, small: bool = False) -> Any:
    """He et al., "Deep residual learning for image recognition", 2016, as torchvision builds it.

    `small` is for images of 32×32: a stem of 3×3 with stride 1 and no pooling, and 10 classes, as in the paper's
    section 4.2.
    """
    nn = library.nn
    if small:
        layers = _conv_norm(library, 3, 64, 3)
    else:
        layers = [*_conv_norm(library, 3, 64, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            out = 4 * width if bottleneck else width
            body = (_bottleneck if bottleneck else _basic)(library, channels, width, out, stride)
            shortcut = nn.Identity()
            if stride > 1 or channels != out:
                shortcut = nn.Sequential(*_conv_norm(library, channels, out, 1, stride, activation=None))
            layers.append(_residual(library, body, shortcut, nn.ReLU()))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10 if small else 1000))


def _basic(library: Library, channels: int, width: int, out: int, stride: int) -> Any:
    return library.nn.Sequential(
        *_conv_norm(library, channels, width, 3, stride),
        *_conv_norm(library, width, out, 3, activation=None),
    )


def _bottleneck(library: Library, channels: int, width: int, out: int, stride: int) -> Any:
    return library.nn.Sequential(
        *_conv_norm(library, channels, width, 1),
        *_conv_norm(library, width, width, 3, stride),
        *_conv_norm(library, width, out, 1, activation=None),
    )


def mobilenet_v2(library: Library) -> Any:
    """Sandler et al., "MobileNetV2", 2018, for 1,000 classes, without dropout: 3,504,872 parameters."""
    nn = library.nn
    layers = _conv_norm(library, 3, 32, 3, 2, activation="ReLU6")
    channels = 32
    for expansion, out, count, first_stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(count):
            stride, width = first_stride if block == 0 else 1, expansion * channels
            body = nn.Sequential(
                *(_conv_norm(library, channels, width, 1, activation="ReLU6") if expansion > 1 else ()),
                *_conv_norm(library, width, width, 3, stride, groups=width, activation="ReLU6"),
                *_conv_norm(library, width, out, 1, activation=None),
            )
            kept = stride == 1 and channels == out
            layers.append(_residual(library, body, nn.Identity(), nn.Identity()) if kept else body)
            channels = out
    layers += _conv_norm(library, channels, 1280, 1, activation="ReLU6")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def _conv_norm(
    library: Library,
    channels: int,
    out: int,
    window: int,
    stride: int = 1,
    groups: int = 1,
    activation: str | None = "ReLU",
) -> list[Any]:
    nn = library.nn
    conv = nn.Conv2d(channels, out, window, stride, window // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), *([getattr(nn, activation)()] if activation else [])]


def _residual(library: Library, body: Any, shortcut: Any, activation: Any) -> Any:
    class Residual(library.nn.Module):  # type: ignore[name-defined]
        """activation(body(x) + shortcut(x))."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.shortcut, self.activation = body, shortcut, activation

        def forward(self, x: Any) -> Any:
            return self.activation(self.body(x) + self.shortcut(x))

    return Residual()


def transformer(
    library: Library, layers: int = 6, width: int = 512, heads: int = 8, vocabulary: int = 32000, length: int = 512
) -> Any:
    """A decoder as GPT-2's: (N, length) tokens to the logits (N, length, vocabulary) of the next ones.

    Norms come first, the last layer shares the embedding's weight, attention is written with matmul and softmax.
    """

    class Transformer(library.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            nn = library.nn
            self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
            self.blocks = nn.Sequential(*(_block(library, width, heads, length) for _ in range(layers)))
            self.norm = nn.LayerNorm(width)

        def forward(self, tokens: Any) -> Any:
            x = self.blocks(self.token(tokens) + self.position.weight)
            return library.functional.linear(self.norm(x), self.token.weight)

    return Transformer()


def _block(library: Library, width: int, heads: int, length: int) -> Any:
    nn = library.nn
    attention = nn.Sequential(nn.LayerNorm(width), _attention(library, width, heads, length))
    feed_forward = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
    )
    return nn.Sequential(
        *(_residual(library, body, nn.Identity(), nn.Identity()) for body in (attention, feed_forward))
    )


def _attention(library: Library, width: int, heads: int, length: int) -> Any:
    class Attention(library.nn.Module):  # type: ignore[name-defined]
        """Each place looks at itself and those before."""

        def __init__(self) -> None:
            super().__init__()
            self.projection, self.out = library.nn.Linear(width, 3 * width), library.nn.Linear(width, width)
            later = np.triu(np.full((length, length), -np.inf, np.float32), 1)
            self.register_buffer("mask", library.tensor(later))

        def forward(self, x: Any) -> Any:
            split = self.projection(x).reshape(-1, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            query, key, value = split[0], split[1], split[2]
            scores = query @ key.transpose(-2, -1) * (width // heads) ** -0.5
            mixed = library.functional.softmax(scores + self.mask, -1) @ value
            return self.out(mixed.transpose(1, 2).reshape(-1, length, width))

    return Attention()


def with_weights(library: Library, model: Any, dtype: str) -> Any:
    """The model on the library's device with the same random weights for every library.

    Matrices and windows are normal with He's variance, vectors are ones (weights) and zeros (biases).
    """
    model = library.placed(model, dtype)
    state = dict(model.state_dict())
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        shape = tuple(parameter.shape)
        if len(shape) > 1:
            state[name] = library.normal(shape, dtype, seed, scale=(2 / prod(shape[1:])) ** 0.5)
        else:
            state[name] = library.tensor(np.full(shape, name.endswith("weight"), np.float32), dtype)
    model.load_state_dict(state)
    return model
