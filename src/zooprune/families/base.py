"""What a model family has to say: how its images are encoded and which prompt slots they fill.

A family knows one kind of model. It never learns which method prunes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from zooprune.compaction import Prompt
from zooprune.families.reading import Change, Seen, lasting, reading, run
from zooprune.policy import PositionPolicy
from zooprune.projectors import Sensitivity
from zooprune.signals import PromptSignal, TowerSignal
from zooprune.visuals import Encoded, Modality


class Family(ABC):
    """A group of model classes that build their prompts alike.

    A family never learns which method prunes.
    """

    #: The model classes this family serves, as transformers names them in ``config.architectures``.
    architectures: ClassVar[tuple[str, ...]]
    #: Names that people know these models by.
    title: ClassVar[str]
    #: How ``estimator="auto"`` finds the sensitivity of these projectors; a linear one tells no tokens apart.
    sensitivity: ClassVar[Sensitivity] = "closed form"
    #: What is particular about their prompts, in the words of the table of models.
    traits: ClassVar[tuple[str, ...]] = ()
    #: What ``positions="auto"`` means for these models.
    positions: ClassVar[PositionPolicy] = "contiguous"
    #: Whether the model's ``generate`` passes positions on, so that kept tokens can keep theirs.
    takes_positions: ClassVar[bool] = True
    #: The arguments of ``generate`` and ``forward`` that `encode` consumes; pixels come first.
    image_arguments: ClassVar[tuple[str, ...]]
    #: The same for videos, empty where the family takes none.
    video_arguments: ClassVar[tuple[str, ...]] = ()
    #: Arguments with one value per prompt token, which are cut like the prompt.
    per_token: ClassVar[tuple[str, ...]] = ()
    #: Arguments that only serve to work out positions, which are given instead.
    consumed: ClassVar[tuple[str, ...]] = ()
    #: Where the modules of the vision tower are, from ``model.model``.
    tower: ClassVar[str] = "vision_tower"
    #: Whether signals of the tower can be given, token by token.
    gives_tower_signals: ClassVar[bool] = True
    #: Whether a conversation can go on from the cache of its beginning: not where all of a prompt sees all of it.
    continues: ClassVar[bool] = True
    #: Those of the architectures in whose language models tokens cannot become fewer, as not every layer holds a key
    #: for each of them.
    unthinned: ClassVar[tuple[str, ...]] = ()
    #: The number that the model's bare forward pass gives the first token.
    first_position: ClassVar[int] = 0

    @abstractmethod
    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images or the videos among `inputs` with the model's own tower and projector.

        Parameters
        ----------
        model : PreTrainedModel
        modality : {"image", "video"}
        inputs : mapping
            What the caller passed to the model.
        signals : sequence of TowerSignal
            What else to give of each token, all from the same forward pass.
        """

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the family takes."""
        return ("image", "video") if self.video_arguments else ("image",)

    def gives(self, signal: TowerSignal | PromptSignal) -> bool:
        """Return whether a method can read a signal on these models."""
        return self.gives_tower_signals or not isinstance(signal, TowerSignal)

    @property
    def thins(self) -> bool:
        """Whether methods can prune inside the language models of the family, or of some of them."""
        return set(self.architectures) > set(self.unthinned)

    def count_on(self, model: Any, prompt: Prompt) -> None:  # noqa: B027 - most models need not be told
        """Tell a model that counts positions itself where to go on after a bare forward pass over a cut prompt."""

    def present(self, inputs: Mapping[str, Any]) -> list[Modality]:
        """Return what there is among `inputs`."""
        return [modality for modality in self.modalities if inputs.get(self.arguments(modality)[0]) is not None]

    def arguments(self, modality: Modality) -> tuple[str, ...]:
        """Return what `encode` consumes for one modality."""
        return self.image_arguments if modality == "image" else self.video_arguments

    def slots(self, model: Any, modality: Modality, input_ids: Tensor) -> Tensor:
        """Return where visual tokens go: bool, the shape of `input_ids`."""
        return input_ids == getattr(model.config, f"{self.placeholder(modality)}_token_id")

    def placeholder(self, modality: Modality) -> Modality:
        """Return whose placeholder stands in the prompts for a modality, and by what name the model takes its rows."""
        return modality

    def axes(self, model: Any, inputs: Mapping[str, Any], attention_mask: Tensor) -> Tensor | None:
        """Return the positions of the uncut prompts on every axis, (axes, B, L), or None where text order is all.

        The mask is on the CPU, and so are the positions.
        """
        return None

    def forward(
        self,
        model: Any,
        modality: Modality,
        inputs: Mapping[str, Any],
        modules: Mapping[str, nn.Module],
        signals: Sequence[TowerSignal] = (),
        *,
        methods: Mapping[str, tuple[Any, str]] | None = None,
        change: Mapping[str, Change] | None = None,
    ) -> tuple[Any, dict[str, Seen], dict[str, Tensor]]:
        """Encode once, and return the encoder's output, what passed through `modules`, and signals of the tower.

        Parameters
        ----------
        model, modality, inputs, signals
            As for `encode`.
        modules, methods, change : mapping
            See `zooprune.families.reading.reading`.

        Returns
        -------
        output : ModelOutput
        seen : dict of str to Seen
        patches : dict of str to Tensor, (sequences, patches, channels)
            The signals in the tower's own order.
        """
        given = {name: inputs[name] for name in self.arguments(modality) if inputs.get(name) is not None}
        layers = {signal.name: self.layer(model, signal.layer) for signal in signals}
        attentions = {f"layer {number}": self.attentions(model)[number] for number in layers.values()}
        with reading(model, modules, attentions=attentions, methods=methods, change=change) as seen:
            features = getattr(model.model, f"get_{modality}_features")
            output = run(model, lambda: features(**given, return_dict=True), seen)
        class_token = bool(signals) and self.class_token(model)
        patches = {s.name: s.patches(seen[f"layer {layers[s.name]}"], class_token=class_token) for s in signals}
        return output, seen, patches

    def attentions(self, model: Any) -> list[nn.Module]:
        """Return the attention modules of the vision tower, by layer."""
        tower = model.model.get_submodule(self.tower)
        return [
            module
            for module in tower.modules()
            if type(module).__name__.endswith("Attention") and hasattr(module, "config")
        ]

    def class_token(self, model: Any) -> bool:
        """Return whether the tower puts a class token in front of the patches."""
        names = [name.rpartition(".")[2] for name, _ in model.model.get_submodule(self.tower).named_parameters()]
        return "class_embedding" in names or "cls_token" in names

    def layer(self, model: Any, number: int | float | None) -> int:
        """Return which layer of the tower a number means; see `zooprune.signals.base.TowerSignal`."""
        total = len(self.attentions(model))
        if isinstance(number, float):
            number = max(1, round(number * total)) - 1
        if number is None:
            # As for `hidden_states`, of which the first is what the first layer reads.
            read = getattr(model.config, "vision_feature_layer", None)
            read = -1 if read is None else read[-1] if isinstance(read, Sequence) else read
            if read == 0:
                raise ValueError(
                    f"the projector of {type(model).__name__} reads no layer of its tower; choose another method"
                )
            number = read if read < 0 else read - 1
        if not -total <= number < total:
            raise ValueError(f"{type(model).__name__} has no layer {number}: its tower has {total}, counted from 0")
        return number % total

    def tail(self, projector: Any) -> nn.Module:
        """Return the part of the projector that works token by token, after any shuffling or pooling."""
        module: nn.Module = projector
        return module

    def token_wise(self, projector: nn.Module) -> nn.Module:
        """Return `tail`, the same object for as long as it is made of the same layers."""
        tail = self.tail(projector)
        return projector if tail is projector else lasting(projector, tail)
