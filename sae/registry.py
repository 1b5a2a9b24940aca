"""Parts by name: one table for each kind of part."""

from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from sae.errors import ConfigError, unknown

T = TypeVar("T", bound=type)
C = TypeVar("C", bound=type)


class Registry(Mapping[str, T]):
    """The classes of one kind of part, by name.

    Args:
        key: Key of the configuration that names a part, for error messages.
        attribute: Attribute of a registered class that holds its name.
        package: Package whose modules register parts. The module that has the name of a part is
            imported when the part is looked up, all modules when the parts are listed.

    Example:
        >>> COLOURS: Registry[type] = Registry("paint.colour", "name")
        >>> @COLOURS.register("red")
        ... class Red: ...
        >>> COLOURS["red"] is Red, Red.name, "blue" in COLOURS
        (True, 'red', False)
    """

    def __init__(self, key: str, attribute: str, package: str | None = None) -> None:
        self.key, self._attribute, self._package = key, attribute, package
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Decorator that registers a class under `name`.

        A notebook cell that is run again replaces its own class.

        Raises:
            ValueError: If another class has the name.
        """

        def enter(part: Any) -> Any:
            there: Any = self._parts.get(name)
            if there is not None and _where(there) != _where(part):
                raise ValueError(
                    f"{self.key}={name} is {_where(there)} already, and {_where(part)} asks for "
                    "the same name. Choose another."
                )
            setattr(part, self._attribute, name)
            self._parts[name] = part
            return part

        return enter

    def find(self, name: object) -> T:
        """The class of this name.

        Raises:
            ConfigError: If there is none, with the names that there are.
        """
        if isinstance(name, str) and name in self:
            return self._parts[name]
        raise ConfigError(unknown(str(name), sorted(self), f"{self.key}=", "Choose one of"))

    def build(self, node: Mapping[str, Any]) -> Any:
        """The part that a node of a configuration describes, from its own settings.

        Args:
            node: The name under the last word of the key (`lm.kind`: "kind"), and the settings.

        Raises:
            ConfigError: If the name is unknown, or a setting is missing, unknown or wrong.
        """
        word = self.key.rpartition(".")[2]
        return self.find(node.get(word))(**{k: v for k, v in node.items() if k != word})

    def __getitem__(self, name: Any) -> T:
        """The class of this name; KeyError if there is none."""
        if name not in self._parts:
            self._import({name})
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        """The names, as they were registered; those of a package by the alphabet."""
        self._import()
        return iter(sorted(self._parts) if self._package else self._parts)

    def __len__(self) -> int:
        """Number of parts."""
        self._import()
        return len(self._parts)

    def _import(self, names: Collection[object] | None = None) -> None:
        """Import the modules of the package that have these names; None: all of them."""
        if self._package is not None:
            for module in iter_modules(import_module(self._package).__path__):
                if names is None or module.name in names:
                    import_module(f"{self._package}.{module.name}")


def _where(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"
