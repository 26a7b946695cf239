"""LeNet-5 learns handwritten digits, on the GPU if there is one, else on NumPy.

    python examples/digits.py                  # the 1,797 digits that come with scikit-learn
    python examples/digits.py --mnist DIR      # MNIST's IDX files in DIR, gzipped or not

It ends with the accuracy on digits that it has not seen, a confusion matrix, the weights in a safetensors file (loaded
back and compared) and a picture: loss curves, the filters of the first layer, and the digits it got wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import adjoint as ad
import adjoint.nn as nn
import adjoint.nn.functional as F


class LeNet(nn.Module):
    """The tutorial form of LeNet-5 (LeCun et al., 1998): (N, 1, 32, 32) images to (N, 10) logits; 61,706 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.flatten(1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class Digits(NamedTuple):
    """Images (N, 1, 32, 32) in float32 with mean 0 and variance 1 over the training set, and int64 labels (N,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class History(NamedTuple):
    """The loss of each training step, and of the test digits after each epoch."""

    train: list[float]
    test: list[float]


def small_digits() -> Digits:
    """scikit-learn's 8×8 digits, enlarged to 32×32; every fifth is held out."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    data = load_digits()
    images = zoom(data.images.astype(np.float32), (1, 4, 4), order=1)
    held_out = np.arange(len(images)) % 5 == 4
    return normalized(images[~held_out], data.target[~held_out], images[held_out], data.target[held_out])


def mnist_digits(folder: Path) -> Digits:
    """MNIST widened to 32×32: its own split, or where there are only the 10,000 test digits, the last 2,000 to test."""

    def read(name: str) -> np.ndarray:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                return ad.data.read_idx(path)
        raise FileNotFoundError(f"{folder}: expected MNIST's file {name}, or {name}.gz")

    def split(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = read(f"{prefix}-images-idx3-ubyte"), read(f"{prefix}-labels-idx1-ubyte")
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise ValueError(f"{folder}: expected 28×28 images and as many labels, got {images.shape}, {labels.shape}")
        return np.pad(images.astype(np.float32), ((0, 0), (2, 2), (2, 2))), labels

    test_images, test_labels = split("t10k")
    if any(folder.glob("train-images-idx3-ubyte*")):
        return normalized(*split("train"), test_images, test_labels)
    cut = len(test_images) * 4 // 5
    return normalized(test_images[:cut], test_labels[:cut], test_images[cut:], test_labels[cut:])


def normalized(
    train_images: np.ndarray, train_labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray
) -> Digits:
    """Both sets with a channel dimension, scaled by the training set's mean and deviation."""
    mean, deviation = train_images.mean(), train_images.std()
    train_images, test_images = ((x[:, None] - mean) / deviation for x in (train_images, test_images))
    return Digits(train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64))


def train(model: nn.Module, digits: Digits, epochs: int, batch_size: int, seed: int) -> History:
    """Minimise the cross-entropy with Adam on shifted images, a tenth of the learning rate in the last third."""
    loader = ad.data.DataLoader(
        ad.data.TensorDataset(ad.tensor(digits.train_images), ad.tensor(digits.train_labels)),
        batch_size=batch_size,
        shuffle=True,
        seed=seed,
    )
    optimizer = ad.optim.Adam(model.parameters(), lr=2e-3)
    scheduler = ad.optim.lr_scheduler.StepLR(optimizer, step_size=max(1, epochs * 2 // 3), gamma=0.1)
    history = History([], [])
    background = float(digits.train_images.min())
    for epoch in range(epochs):
        model.train()
        bar = tqdm(loader, desc=f"epoch {epoch + 1:2}/{epochs}", unit="batch", leave=epoch == epochs - 1)
        for images, labels in bar:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(shifted(images, background)), labels)
            loss.backward()
            optimizer.step()
            history.train.append(loss.item())
            bar.set_postfix(loss=f"{np.mean(history.train[-20:]):.4f}")
        scheduler.step()
        logits = predict(model, digits.test_images)
        history.test.append(F.cross_entropy(ad.tensor(logits), ad.tensor(digits.test_labels)).item())
    return history


def shifted(images: ad.Tensor, background: float, most: int = 2) -> ad.Tensor:
    """The images, all moved by the same up to `most` pixels each way: a digit is the same wherever it is written."""
    down, right = ad.randint(0, 2 * most + 1, (2,)).tolist()
    height, width = images.shape[2:]
    wider = F.pad(images, (most, most, most, most), value=background)
    return wider[:, :, down : down + height, right : right + width]


def predict(model: nn.Module, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """The logits (N, 10) of images, as NumPy."""
    model.eval()
    with ad.no_grad():
        parts = [model(ad.tensor(images[i : i + batch_size])).cpu().numpy() for i in range(0, len(images), batch_size)]
    return np.concatenate(parts)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """How often each digit (row) was taken for each (column)."""
    matrix = np.zeros((10, 10), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def draw(path: Path, model: nn.Module, digits: Digits, predictions: np.ndarray, history: History) -> None:
    """The picture: loss curves, first-layer filters, confusion matrix, misclassified digits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(12, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2))
    curves, confusion = top.subplots(1, 2, width_ratios=(3, 2))
    per_epoch = len(history.train) // len(history.test)
    curves.plot(
        np.arange(1, len(history.train) + 1) / per_epoch, history.train, lw=0.6, alpha=0.7, label="training step"
    )
    curves.plot(np.arange(1, len(history.test) + 1), history.test, "o-", label="held-out digits")
    curves.set(xlabel="epoch", ylabel="cross-entropy", yscale="log", title="Loss")
    curves.legend()
    matrix = confusion_matrix(digits.test_labels, predictions)
    confusion.imshow(np.log1p(matrix), cmap="Blues")
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            confusion.text(column, row, str(count), ha="center", va="center", fontsize=8,
                           color="white" if row == column else "black")  # fmt: skip
    confusion.set(xticks=range(10), yticks=range(10), xlabel="prediction", ylabel="digit", title="Confusion matrix")

    filters, mistakes = bottom.subfigures(1, 2)
    weights = model.conv1.weight.detach().cpu().numpy()[:, 0]
    filters.suptitle("Filters of the first layer")
    limit = np.abs(weights).max()
    for axes, kernel in zip(filters.subplots(2, 3).flat, weights, strict=True):
        axes.imshow(kernel, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_axis_off()
    wrong = np.flatnonzero(predictions != digits.test_labels)
    shown = wrong[:12]
    mistakes.suptitle(f"Misclassified: {len(wrong)}" + (f", the first {len(shown)}" if len(wrong) > len(shown) else ""))
    for axes, i in zip(mistakes.subplots(2, 6).flat, [*shown, *[None] * (12 - len(shown))], strict=True):
        axes.set_axis_off()
        if i is not None:
            axes.imshow(digits.test_images[i, 0], cmap="gray_r")
            axes.set_title(f"{digits.test_labels[i]} → {predictions[i]}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, metavar="DIR", help="read MNIST's IDX files from DIR")
    parser.add_argument(
        "--backend", choices=("numpy", "cupy"), help="default: ADJOINT_BACKEND, else CuPy if there is a GPU"
    )
    parser.add_argument("--epochs", type=int, help="default: 20, with --mnist 3")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path("build/digits"), metavar="DIR", help="default: build/digits"
    )
    result = parser.parse_args()
    for name in ("epochs", "batch_size"):
        value = getattr(result, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    return result


def main() -> None:
    options = arguments()
    try:
        if options.backend is not None:
            ad.set_default_device({"numpy": "cpu", "cupy": "cuda"}[options.backend])
        ad.manual_seed(options.seed)
        digits = mnist_digits(options.mnist) if options.mnist else small_digits()
    except (OSError, RuntimeError, ValueError) as error:  # no GPU; no file, or a damaged one
        sys.exit(f"digits.py: {error}")
    epochs = options.epochs or (3 if options.mnist else 20)
    model = LeNet()
    print(
        f"LeNet-5, {sum(p.numel() for p in model.parameters()):,} parameters, on {ad.get_default_device()}: "
        f"{len(digits.train_labels):,} digits to learn from, {len(digits.test_labels):,} to test"
    )
    start = time.perf_counter()
    history = train(model, digits, epochs, options.batch_size, options.seed)
    seconds = time.perf_counter() - start

    logits = predict(model, digits.test_images)
    predictions = logits.argmax(1)
    print("\nRows: the digit. Columns: what it was taken for.")
    print("    " + "".join(f"{digit:5}" for digit in range(10)))
    for digit, row in enumerate(confusion_matrix(digits.test_labels, predictions)):
        print(f"{digit:4}" + "".join(f"{count or '·':>5}" for count in row))

    weights, picture = options.output / "lenet.safetensors", options.output / "digits.png"
    options.output.mkdir(parents=True, exist_ok=True)
    ad.save(model.state_dict(), weights)
    restored = LeNet()
    restored.load_state_dict(ad.load(weights))
    if not np.array_equal(predict(restored, digits.test_images), logits):
        raise RuntimeError(f"the weights loaded back from {weights} predict something else")
    draw(picture, model, digits, predictions, history)
    print(f"\nweights: {weights} (loaded back: equal predictions)\npicture: {picture}")
    rate = epochs * len(digits.train_labels) / seconds
    accuracy = (predictions == digits.test_labels).mean()
    print(f"accuracy {accuracy:.2%} after {epochs} epochs in {seconds:.1f} s ({rate:,.0f} digits/s)")


if __name__ == "__main__":
    main()
