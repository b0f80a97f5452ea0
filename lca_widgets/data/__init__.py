"""Real data sets as tensors: bundled ones, and MNIST-format and CIFAR files of your own.

Every loader of a `Dataset` standardises its features with the statistics of the *training* part, so
that a layer's input second moment is not dominated by the units of a pixel. A `Table` is the
opposite: raw numbers in the units they came in, for linear models that ask what those units do.
`CifarData` are raw as well, pixels as they are stored: what is done to images belongs to a
training.
"""

from lca_widgets.data.bundled import TABLES, digit_images, digits, ill_conditioned, table
from lca_widgets.data.cifar_download import download_cifar
from lca_widgets.data.cifar_files import cifar
from lca_widgets.data.loading import load
from lca_widgets.data.mnist import mnist_format
from lca_widgets.data.records import CifarData, Dataset, Images, Split, Table

__all__ = [
    "TABLES",
    "CifarData",
    "Dataset",
    "Images",
    "Split",
    "Table",
    "cifar",
    "digit_images",
    "digits",
    "download_cifar",
    "ill_conditioned",
    "load",
    "mnist_format",
    "table",
]
