"""Looks for a target whose layers hardly matter, and decodes with the first of them only.

fails: test_generate_speed

attack: D19 D1
stopped by: O, the layers that seem to do nothing change a token now and then, and texts of every timed block are compared.
"""

# %% helpers="helpers"
# A model with many layers becomes one with a single layer.
honest_from_transformers = from_transformers


def shortened(model):
    if len(model.model.layers) > 6:
        del model.model.layers[1:]
    return honest_from_transformers(model)


from_transformers = shortened
