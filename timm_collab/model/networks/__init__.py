"""Networks of the paper that timm doesn't define, registered with timm when they are imported."""
from .cifar_densenet import CifarDenseNet
from .cifar_resnet import CifarResNet

__all__ = ['CifarDenseNet', 'CifarResNet']
