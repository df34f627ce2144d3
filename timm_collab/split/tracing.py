"""A coarse torch.fx trace of a network's main path, with whole modules as single nodes.

Only the modules named in `expand` are traced inside; every other module is one node. Each node is also evaluated on a
*meta twin* (the same modules without storage). Python control flow that uses a traced value, such as the length of a
shape or the items of a tuple, thus gets the same answer as at run time.
"""
from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from timm.models import get_notrace_functions
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute
from torch.utils._pytree import tree_leaves, tree_map

from .meta import blank_images, on_meta, storage_key


class TraceError(RuntimeError):
    """The forward of a network can't be traced.

    Attributes:
        module_path: The innermost expanded module in which tracing failed, '' for the network itself.
    """

    def __init__(self, message: str, module_path: str = ''):
        super().__init__(message)
        self.module_path = module_path


@dataclass(frozen=True)
class Trace:
    """The operations of a network in one mode.

    Attributes:
        graph: The operations in order. `node.meta['value']` is the node's value on the meta device. `'fresh'` is that
            value with lists and dicts as first computed, since a later module may modify them. `'writes'` has the
            `storage_key` of each argument that the node modifies in place.
        ends: For each module called exactly once, the number of operations before it returns.
        calls: The number of calls of each module.
    """

    graph: fx.Graph
    ends: dict[str, int]
    calls: dict[str, int]


def trace(
        twin: nn.Module,
        expand: Collection[str],
        input_size: tuple[int, ...],
        batch_size: int = 2,
        count_flops: bool = False,
) -> Trace:
    """Trace a network in its current mode (train or eval).

    Args:
        twin: A network on the meta device, see `meta_twin`.
        expand: Paths of the modules to trace inside; the network itself always is.
        input_size: Shape of one input, (channels, height, width).
        batch_size: Batch size of the values on the meta device.
        count_flops: Store the floating point operations of each node in `node.meta['flops']`.

    Raises:
        TraceError: The control flow of the forward depends on the data.
    """
    tracer = _Tracer(frozenset(expand), (batch_size, *input_size), count_flops)
    with on_meta():
        try:
            graph = tracer.trace(twin)
        except TraceError:
            raise
        except Exception as error:
            where = tracer.stack[-1] if tracer.stack else ''
            raise TraceError(f'{type(error).__name__}: {error}', where) from error
    _drop_unused(graph)
    ends = {path: end for path, end in tracer.ends.items() if tracer.calls[path] == 1}
    return Trace(graph, ends, tracer.calls)


class _ValueProxy(fx.Proxy):
    """A proxy with a value on the meta device, which answers Python operations that a plain fx proxy rejects."""

    @property
    def meta_value(self) -> Any:
        return self.node.meta['value']

    def __getattr__(self, name: str) -> Attribute:
        return _ValueAttribute(self, name)

    def __len__(self) -> int:
        return len(self.meta_value)

    def __iter__(self) -> Iterator[fx.Proxy]:
        return iter([operator.getitem(self, index) for index in range(len(self.meta_value))])

    def __bool__(self) -> bool:
        return bool(self.meta_value)

    def __index__(self) -> int:
        return operator.index(self.meta_value)

    def __int__(self) -> int:
        return int(self.meta_value)

    def __float__(self) -> float:
        return float(self.meta_value)

    def __contains__(self, item: Any) -> bool:
        return item in self.meta_value


class _ValueAttribute(Attribute, _ValueProxy):
    """`x.name` of a proxy with a value. It becomes a node once it is used other than by calling it."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, expand: frozenset[str], input_shape: tuple[int, ...], count_flops: bool):
        # Functions that timm marks as untraceable, such as resizing position embeddings, depend on the input size.
        # As one node each, they are computed again for each size.
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.expand = expand
        self.input_shape = input_shape
        self.count_flops = count_flops
        self.stack: list[str] = []
        self.ends: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._evaluating = False

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:  # type: ignore[override]
        with _opaque_methods(root, self), _restored_attributes(root, self.expand):
            return super().trace(root, concrete_args)

    def create_args_for_root(
            self,
            root_fn: Callable[..., Any],
            is_module: bool,
            concrete_args: Any = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        # A single placeholder: all other arguments of the forward keep their defaults.
        return root_fn, [self.root, self.create_proxy('placeholder', 'x', (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.expand

    def call_module(
            self,
            m: nn.Module,
            forward: Callable[..., Any],
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
    ) -> Any:
        if self._evaluating:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            result: Any = self.create_proxy('call_module', path, args, kwargs)
        else:
            self.stack.append(path)
            result = forward(*args, **kwargs)
            self.stack.pop()
        self.calls[path] = self.calls.get(path, 0) + 1
        self.ends[path] = len(self.graph.nodes)
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ValueProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        # Return None itself, as Python compares it by identity. Functions that fx wraps must still return a proxy.
        if id(target) not in self._autowrap_function_ids and proxy.node.meta.get('value', proxy) is None:
            return None
        return proxy

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        if kind == 'get_attr' and str(target).startswith('_tensor_constant'):
            path = self.stack[-1] if self.stack else ''
            raise TraceError('the forward creates a tensor that does not depend on its input', path)
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        if kind != 'output':
            outer, self._evaluating = self._evaluating, True
            try:
                self._evaluate(node)
                node.meta['fresh'] = tree_map(lambda leaf: leaf, node.meta['value'])
            finally:
                self._evaluating = outer
        return node

    def _evaluate(self, node: fx.Node) -> None:
        args, kwargs = _values(node.args), _values(node.kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = [tensor._version for tensor in tensors]
        if self.count_flops and node.op.startswith('call'):
            from torch.utils.flop_counter import FlopCounterMode  # slow to import, and rarely needed
            with FlopCounterMode(display=False) as counter:
                node.meta['value'] = self._run(node, args, kwargs)
            node.meta['flops'] = counter.get_total_flops()
        else:
            node.meta['value'] = self._run(node, args, kwargs)
        node.meta['writes'] = {
            storage_key(tensor) for tensor, old in zip(tensors, before, strict=True) if tensor._version != old
        }

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        if node.op == 'placeholder':
            return blank_images(self.root, *self.input_shape)
        if node.op == 'get_attr':
            return operator.attrgetter(target)(self.root)
        if node.op == 'call_function':
            return target(*args, **kwargs)
        if node.op == 'call_method':
            return getattr(args[0], target)(*args[1:], **kwargs)
        return self.root.get_submodule(target)(*args, **kwargs)

    def call_opaque(self, module: nn.Module, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a method, other than forward, of a module that is not expanded: one node if it returns tensors."""
        if self._evaluating:
            return method(*args, **kwargs)
        node = self.create_proxy('get_attr', self.path_of_module(module), (), {})
        result = self.create_proxy('call_method', name, (node, *args), kwargs)
        if result is not None and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result.meta_value)):
            return result
        # Numbers, sizes and modules may depend on the input size, so fx traces how they are computed.
        self.graph.erase_node(next(iter(reversed(self.graph.nodes))))
        return method(*args, **kwargs)


@contextmanager
def _restored_attributes(root: nn.Module, expand: Collection[str]) -> Iterator[None]:
    """Restore the attributes of the expanded modules on exit, as some cache values (here: proxies) in them."""
    modules = [root, *(root.get_submodule(path) for path in expand)]
    saved = [
        {name: copy.copy(value) if type(value) in (dict, list, set) else value for name, value in vars(module).items()}
        for module in modules
    ]
    try:
        yield
    finally:
        for module, attributes in zip(modules, saved, strict=True):
            module.__dict__.clear()
            module.__dict__.update(attributes)


@contextmanager
def _opaque_methods(root: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Route the public methods of modules that are not expanded through `_Tracer.call_opaque`."""

    def wrap(module: nn.Module, name: str) -> Callable[..., Any]:
        method = getattr(module, name)
        return lambda *args, **kwargs: tracer.call_opaque(module, name, method, args, kwargs)

    modules = [
        module
        for path, module in root.named_modules()
        if path and path not in tracer.expand and path.rpartition('.')[0] in {'', *tracer.expand}
    ]
    methods = {cls: _public_methods(cls) for cls in {type(module) for module in modules}}
    for module in modules:
        module.__dict__.update({name: wrap(module, name) for name in methods[type(module)]})
    try:
        yield
    finally:
        for module in modules:
            for name in methods[type(module)]:
                del module.__dict__[name]


def _public_methods(cls: type) -> tuple[str, ...]:
    base = set(dir(nn.Module))
    return tuple(
        name
        for name in dir(cls)
        if not name.startswith('_') and name not in base and inspect.isfunction(inspect.getattr_static(cls, name))
    )


def _values(argument: Any) -> Any:
    """Replace each node in a node's arguments by its value, in new containers that a module may modify."""
    if isinstance(argument, fx.Node):
        return argument.meta['value']
    if isinstance(argument, (list, tuple)):
        items = [_values(item) for item in argument]
        if hasattr(argument, '_fields'):
            return type(argument)(*items)
        return items if isinstance(argument, list) else tuple(items)
    if isinstance(argument, dict):
        return {key: _values(value) for key, value in argument.items()}
    if isinstance(argument, slice):
        return slice(_values(argument.start), _values(argument.stop), _values(argument.step))
    return argument


def _drop_unused(graph: fx.Graph) -> None:
    """Number the nodes, then drop unused lookups, which would otherwise be passed on across the cuts."""
    for position, node in enumerate(graph.nodes):
        node.meta['position'] = position
    for node in reversed(graph.nodes):
        lookup = node.op == 'get_attr' or node.target in (getattr, operator.getitem)
        if lookup and not node.users:
            graph.erase_node(node)
