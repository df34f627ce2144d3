"""Networks of the paper that are not in timm, registered with timm on import."""
from .cifar_densenet import CifarDenseNet
from .cifar_resnet import CifarResNet

__all__ = ['CifarDenseNet', 'CifarResNet']
