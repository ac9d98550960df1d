"""What the tokens know about the class, and how much of it survives in the latent."""

from __future__ import annotations

from tcae_diffusers.data.images.image_sets import open_labelled_source
from tcae_diffusers.metrics.probing import evaluate_probing
from tcae_diffusers.models.adapters import adapt, load_autoencoder
from tcae_diffusers.models.object_finder import ObjectFinder

from ..arguments.probing import ProbingArguments
from ..results.kinds.autoencoder import describe_autoencoder, describe_images
from ..results.kinds.probing import ProbingResult
from ..results.provenance import provenance


def run(arguments: ProbingArguments) -> ProbingResult:
    """
    Probes an autoencoder.

    Raises:
        InputError: If the model or the images cannot be used; the message says why.
    """
    state = arguments.process_state()
    model = load_autoencoder(arguments.autoencoder, arguments.chosen_device())
    size = arguments.image_size(model)
    train, test = (open_labelled_source(spec, size) for spec in (arguments.train, arguments.test))
    height, width = test[0].shape[:2]
    adapt(model).check_image_size(height, width)
    finder = None
    if arguments.object_finder is not None:
        finder = ObjectFinder(arguments.object_finder, arguments.chosen_device(), arguments.object_points)
    found = evaluate_probing(
        model,
        train,
        test,
        arguments.batch_size,
        arguments.token_module,
        arguments.epochs,
        arguments.seed,
        tsne=arguments.tsne,
        finder=finder,
    )
    return ProbingResult(
        figures=found.figures,
        autoencoder=describe_autoencoder(arguments.autoencoder, model),
        data={**describe_images(arguments.test, test), "height": height, "width": width},
        pictures=found.pictures,
        labels=found.labels,
        classes=found.classes,
        not_measured=found.not_measured,
        fitted_to=describe_images(arguments.train, train),
        **provenance(
            train=arguments.train,
            test=arguments.test,
            epochs=arguments.epochs,
            seed=arguments.seed,
            token_module=arguments.token_module,
            object_finder=arguments.object_finder,
            object_points=arguments.object_points,
            resolution=height,
            ranks=state.num_processes,
        ),
    )
