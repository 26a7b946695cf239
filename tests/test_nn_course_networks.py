"""Networks as course notes print them for PyTorch, with only their imports changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adjoint
import adjoint.nn as nn
import adjoint.nn.functional as F

# The class bodies below are listings: they stay as they are printed, and the same text is run on PyTorch.

GRAYSCALE = """
class Net(nn.Module):

    def __init__(self):
        super(Net, self).__init__()
        # 1 input image channel, 6 output channels, 5x5 square convolution
        # kernel
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        # an affine operation: y = Wx + b
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        # Max pooling over a (2, 2) window
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        # If the size is a square you can only specify a single number
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, self.num_flat_features(x))
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x

    def num_flat_features(self, x):
        size = x.size()[1:]  # all dimensions except the batch dimension
        num_features = 1
        for s in size:
            num_features *= s
        return num_features
"""

COLOUR = """
class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x
"""

BLOCKS = """
def conv_relu_maxpool(cin, cout, csize, cstride, cpad, msize, mstride, mpad):
    return [nn.Conv2d(cin, cout, csize, cstride, cpad),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(msize, mstride, mpad)]

def linear_relu(dim_in, dim_out):
    return [nn.Linear(dim_in, dim_out),
            nn.ReLU(inplace=True)]

class Net(nn.Module):
    def __init__(self, num_classes=10, height=16, width=12):
        super(Net, self).__init__()
        self.conv_model = nn.Sequential(
            *conv_relu_maxpool(cin=3, cout=8,
                               csize=3, cstride=1,
                               cpad=1,
                               msize=2, mstride=2,
                               mpad=0),
            *conv_relu_maxpool(cin=8, cout=16,
                               csize=3, cstride=1,
                               cpad=1,
                               msize=2, mstride=2,
                               mpad=0)
        )
        dummy_output = self.conv_model(torch.zeros((1, 3, height, width)))
        output_size = np.prod(dummy_output.shape[1:])
        self.fc_model = nn.Sequential(
            *linear_relu(output_size, 32),
            nn.Linear(32, num_classes)
        )

    def forward(self, x):
        x = self.conv_model(x)
        x = x.view(x.shape[0], -1)
        return self.fc_model(x)
"""

NETWORKS = {
    "grayscale": (GRAYSCALE, (1, 32, 32), 61_706),
    "colour": (COLOUR, (3, 32, 32), 62_006),
    "blocks": (BLOCKS, (3, 16, 12), 224 + 1168 + (16 * 4 * 3 * 32 + 32) + 330),
}


def built(listing: str, library: Any, layers: Any, functions: Any) -> Any:
    """The network of a listing, made of the layers of one library."""
    names = {"torch": library, "nn": layers, "F": functions, "np": np, "__name__": __name__}
    exec(listing, names)
    return names["Net"]()


@pytest.mark.parametrize("name", NETWORKS)
def test_listing_runs(name: str) -> None:
    listing, shape, count = NETWORKS[name]
    adjoint.manual_seed(0)
    network = built(listing, adjoint, nn, F)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    x = adjoint.randn(4, *shape)
    output = network(x)
    assert output.shape == (4, 10)
    assert output.detach().numpy().std() > 0
    nn.CrossEntropyLoss()(output, adjoint.tensor([1, 2, 3, 4])).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad.shape == parameter.shape, parameter_name
        assert np.abs(parameter.grad.numpy()).max() > 0, parameter_name


@pytest.mark.parametrize("name", NETWORKS)
def test_pytorchs_weights_give_pytorchs_outputs_and_gradients(name: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    listing, shape, _ = NETWORKS[name]
    torch.manual_seed(1)
    theirs = built(listing, torch, torch.nn, torch.nn.functional)
    network = built(listing, adjoint, nn, F)
    assert network.load_state_dict(theirs.state_dict()) == ([], [])
    assert repr(network) == repr(theirs)
    x = np.random.default_rng(2).standard_normal((5, *shape)).astype(np.float32)
    labels = np.array([0, 9, 3, 3, 7])
    output, expected = network(adjoint.tensor(x)), theirs(torch.tensor(x))
    np.testing.assert_allclose(output.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    F.cross_entropy(output, adjoint.tensor(labels)).backward()
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()
    gradients = dict(theirs.named_parameters())
    for parameter_name, parameter in network.named_parameters():
        np.testing.assert_allclose(
            parameter.grad.numpy(),
            gradients[parameter_name].grad.numpy(),
            rtol=1e-3,
            atol=1e-5,
            err_msg=parameter_name,
        )


def test_a_listing_learns() -> None:
    adjoint.manual_seed(0)
    network = built(GRAYSCALE, adjoint, nn, F)
    x, labels = adjoint.randn(16, 1, 32, 32), adjoint.arange(16) % 10
    optimizer = nn.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2 and losses[-1] < 0.1
