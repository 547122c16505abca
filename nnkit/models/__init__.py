"""Rank 2: model families as Flax Linen modules, one file each, readable alone."""

from nnkit.models.bert import BERT
from nnkit.models.convnet import ConvNet
from nnkit.models.convnext import ConvNeXt
from nnkit.models.encdec import EncDec, shift_right
from nnkit.models.gpt import GPT
from nnkit.models.mlp import MLP, Linear
from nnkit.models.patchtst import PatchTST
from nnkit.models.recurrent import RecurrentClassifier, RecurrentLM
from nnkit.models.resnet import ResNet, WideResNet
from nnkit.models.revin import RevIN
from nnkit.models.tcn import TCN, receptive_field
from nnkit.models.textcnn import TextCNN
from nnkit.models.timeseries import DLinear, NLinear, Repeat, SeasonalNaive, ridge
from nnkit.models.unet import UNet, border_weights, tiled
from nnkit.models.vit import ViT

__all__ = [
    "BERT",
    "GPT",
    "MLP",
    "TCN",
    "ConvNeXt",
    "ConvNet",
    "DLinear",
    "EncDec",
    "Linear",
    "NLinear",
    "PatchTST",
    "RecurrentClassifier",
    "RecurrentLM",
    "Repeat",
    "ResNet",
    "RevIN",
    "SeasonalNaive",
    "TextCNN",
    "UNet",
    "ViT",
    "WideResNet",
    "border_weights",
    "receptive_field",
    "ridge",
    "shift_right",
    "tiled",
]
