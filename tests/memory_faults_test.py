"""A device that runs out of memory: what is proposed then, of batches, pieces of rows and meshes."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import jax
import pytest
from faults_test import one_line

from adx import fitting, generation
from adx.errors import ConfigError
from adx.models.transformer import make_model
from adx.optimising import Recipe
from adx.study import Student
from tests import tiny


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    return tiny.one_arm(tmp_path_factory.mktemp('memory'))


class TestMemory:
    FULL = 'RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.'

    def fail(self, monkeypatch, message, limit):
        def decode(*given):
            raise jax.errors.JaxRuntimeError(message)
            yield

        monkeypatch.setattr(generation, 'decode', decode)
        monkeypatch.setattr(fitting, 'device_memory', lambda device: limit)

    def planned(self, experiment, **decode):
        changed = dataclasses.replace(experiment, decode=dataclasses.replace(experiment.decode, **decode))
        return fitting._plan(changed, fitting.blueprint(changed)).total

    def test_the_batch_that_fits_is_proposed(self, experiment, tmp_path, monkeypatch):
        wide = dataclasses.replace(experiment, decode=dataclasses.replace(experiment.decode, slots=64))
        self.fail(monkeypatch, self.FULL, self.planned(wide, slots=16))
        with one_line(ConfigError, 'decode.slots = 64 on the mesh 1x1x1', 'take --set=decode.slots=16 ('):
            tiny.generate(wide, tmp_path)

    def test_also_where_the_plan_was_wrong_and_where_a_device_does_not_say(self, experiment, tmp_path, monkeypatch):
        for limit in (2**40, None):
            self.fail(monkeypatch, self.FULL, limit)
            with one_line(ConfigError, 'take --set=decode.slots=2 ('):
                tiny.generate(experiment, tmp_path)

    def test_a_batch_that_the_mesh_splits_is_proposed(self, experiment):
        """Of 24 rows over 4 devices a quarter is 6, which they do not divide."""
        decode = dataclasses.replace(experiment.decode, slots=24, prefill_rows=4)
        mesh = dataclasses.replace(experiment.mesh, data=4)
        wide = dataclasses.replace(experiment, decode=decode, mesh=mesh)
        said = fitting.proposal(wide, fitting.blueprint(wide), self.planned(wide, slots=4))
        assert said.startswith('take --set=decode.slots=4 (')

    def test_a_mesh_is_proposed_where_no_batch_fits(self, experiment, tmp_path, monkeypatch):
        self.fail(monkeypatch, self.FULL, self.planned(experiment, slots=2) - 1)
        with one_line(ConfigError, 'take --set=mesh.model=2 ('):
            tiny.generate(experiment, tmp_path)
        self.fail(monkeypatch, self.FULL, 1000)
        with one_line(ConfigError, 'of 0.0 MiB', 'no batch and no mesh of these devices fits'):
            tiny.generate(experiment, tmp_path)

    def test_pieces_of_the_rows_of_students_are_proposed_else_a_mesh(self, experiment, monkeypatch):
        """Of --stages=distil."""
        recipe = Recipe(rows=8, length=64)
        student = Student('a', experiment.teacher)
        study: Any = types.SimpleNamespace(experiment=experiment, students=(student,), recipe=recipe)
        models = [make_model(fitting.stored_config(experiment.teacher))]

        def planned(accumulate=1, model=1):
            changed = dataclasses.replace(recipe, accumulate=accumulate)
            return fitting._training(models, changed, dataclasses.replace(experiment.mesh, model=model))

        assert planned(1) > planned(4) > planned(8) > planned(1, model=8)
        for limit, proposed in (
            (planned(4), 'recipe.accumulate=4'), (None, 'recipe.accumulate=2'), (2**40, 'recipe.accumulate=2'),
            (planned(8) - 1, 'experiment.mesh.model='), (1000, None),
        ):  # fmt: skip
            monkeypatch.setattr(fitting, 'device_memory', lambda device, limit=limit: limit)
            said = f'take --set={proposed}' if proposed else 'no piece of the rows and no mesh of these devices fits'
            with one_line(ConfigError, 'recipe.rows = 8 in 1 pieces', said), fitting.training_explained(study):
                raise jax.errors.JaxRuntimeError(self.FULL)
        with pytest.raises(jax.errors.JaxRuntimeError, match='a bug'), fitting.training_explained(study):
            raise jax.errors.JaxRuntimeError('INTERNAL: a bug')

    def test_another_error_stays_what_it_is(self, experiment, tmp_path, monkeypatch):
        self.fail(monkeypatch, 'INTERNAL: a bug', 1000)
        with pytest.raises(jax.errors.JaxRuntimeError, match='a bug'):
            tiny.generate(experiment, tmp_path)
