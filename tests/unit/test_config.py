from pathlib import Path

import pytest
from pydantic import ValidationError

from pvdm_cli.config import (
    ModelConfig,
    RunConfig,
    apply_overrides,
    differing_keys,
    dump_yaml,
    load_config,
    parse_config,
)
from pvdm_cli.errors import ConfigError

SMALL = """\
# A small one
stage: diffusion
clip: {frames: 8, height: 64, width: 48}
autoencoder: {width: 64, latent_channels: 3}
denoiser: {base_channels: 32, channel_multipliers: [1, 2], num_heads: 4}
diffusion: {prefix_prob: 0.2}
training: {lr: 1e-4}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def refused(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_sizes_of_the_latent_follow_from_clip_and_patch(small: Path) -> None:
    latent = load_config(small).latent
    assert latent == (3, 8, 8, 6)
    assert latent.flat == 8 * 6 + 8 * 6 + 8 * 8


def test_the_defaults_are_the_published_sizes() -> None:
    assert ModelConfig().latent == (4, 16, 32, 32)
    assert ModelConfig().latent.flat == 2048


def test_1e_4_is_a_number_in_a_file_and_in_an_override(small: Path) -> None:
    assert load_config(small).training.lr == 1e-4
    assert load_config(small, ["training.lr=3e-5"]).training.lr == 3e-5


def test_overrides_reach_into_sections_and_make_missing_ones(small: Path) -> None:
    config = load_config(small, ["data.holdout=0.5", "denoiser.channel_multipliers=[1,1]"])
    assert config.data.holdout == 0.5
    assert config.denoiser is not None
    assert config.denoiser.channel_multipliers == (1, 1)
    assert config.denoiser.base_channels == 32


def test_overrides_leave_the_given_values_alone() -> None:
    values = {"clip": {"frames": 8}}
    assert apply_overrides(values, ["clip.frames=4"]) == {"clip": {"frames": 4}}
    assert values == {"clip": {"frames": 8}}


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        ModelConfig().clip = ModelConfig().clip  # type: ignore[misc]


def test_a_written_config_reads_back_equal(small: Path, tmp_path: Path) -> None:
    config = load_config(small)
    again = tmp_path / "again.yaml"
    again.write_text(dump_yaml(config))
    assert load_config(again) == config


def test_differing_keys_are_named_with_their_sections(small: Path) -> None:
    ours = load_config(small)
    theirs = load_config(small, ["training.lr=1", "clip.frames=16", "init=elsewhere"])
    assert differing_keys(ours, theirs) == ["clip.frames", "init", "training.lr"]
    assert differing_keys(ours, ours) == []


def test_the_model_part_has_the_networks_and_nothing_of_the_training(small: Path) -> None:
    model = load_config(small).model()
    assert type(model) is ModelConfig
    assert model.latent == (3, 8, 8, 6)
    assert model.diffusion is not None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("frames=3", "unknown key 'frames'"),
        ("clip.frame=3", "unknown key 'frame' in clip; did you mean 'frames'?"),
        ("training.batchsize=3", "did you mean 'batch_size'?"),
        ("adversarial.feature_wait=3", "did you mean 'feature_weight'?"),
        ("training.batch_size=0", "training.batch_size: 0 is less than one clip"),
        ("training.batch_size=many", "training.batch_size='many': input should be a valid integer"),
        ("training.lr=-1", "training.lr=-1: input should be greater than 0"),
        ("training.lr=.inf", "training.lr=inf"),
        ("training.betas=[0.9, 1.5]", "training.betas.1=1.5: input should be less than 1"),
        ("training.precision=fp8", "'fp32', 'bf16' or 'fp16'"),
        ("denoiser.channel_multipliers=[1,0]", "greater than 0"),
        ("denoiser.base_channels=48", "base_channels=48 is not a multiple of 32"),
        ("denoiser.num_heads=5", "base_channels=32 is not a multiple of num_heads=5"),
        ("autoencoder.head_dim=6", "head_dim=6 is not a multiple of 4"),
        ("autoencoder.width=60", "width=60 is not a multiple of 8"),
        ("diffusion.beta_end=0.001", "beta_end=0.001 is below beta_start=0.0015"),
        ("clip.height=60", "clip.height=60 is not a multiple of autoencoder.patch=8"),
        ("clip.frames=7", "clip.frames is 7, which is not a multiple of 2"),
        ("clip.width=40", "clip.width / autoencoder.patch is 5, which is not a multiple of 2"),
        ("denoiser=null", "stage: diffusion needs the sections denoiser and diffusion"),
        ("stage=other", "stage='other'"),
        ("training=3", "training=3"),
        ("training.lr", "override 'training.lr' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
        ("training.lr=[1", "override 'training.lr=[1': the value is not readable"),
    ],
)
def test_each_mistake_is_one_sentence_that_names_file_and_key(
    small: Path, override: str, said: str
) -> None:
    message = refused(small, override)
    assert said in message
    assert message.startswith((str(small), "override "))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stage: [", "not readable as YAML"),
        ("- 1\n- 2\n", "expected 'key: value' lines, found list"),
        ("", "expected 'key: value' lines"),
        ("clip: {frames: 8}\n", "key 'stage' is missing"),
        ("stage: autoencoder\nclip: 3\n", "clip=3"),
        ("stage: autoencoder\n7: 3\n", "7"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refused(path)
    assert message.startswith(str(path))
    assert said in message


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(bytes(range(256)))
    assert "not readable as YAML" in refused(path)


def test_an_unknown_preset_is_answered_with_the_nearest_name() -> None:
    assert "did you mean 'sky/diffusion-l'?" in refused("sky/difusion-l")
    assert "no such file" in refused("nowhere/mine.yaml")


def test_a_section_may_be_validated_on_its_own() -> None:
    config = parse_config(RunConfig, {"stage": "autoencoder"}, where="here")
    assert config.training.batch_size == 8
    with pytest.raises(ConfigError, match="here: unknown key 'x'"):
        parse_config(RunConfig, {"stage": "autoencoder", "x": 1}, where="here")


def test_clips_share_at_most_half_of_their_frames() -> None:
    assert load_config("demo/diffusion", ["diffusion.overlap=8"])
    with pytest.raises(ConfigError, match="overlap=9 is more than half"):
        load_config("demo/diffusion", ["diffusion.overlap=9"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["diffusion.zero_terminal_snr=true", "diffusion.objective=eps"], "use objective=v"),
        (["diffusion.objective=flow", "diffusion.beta_end=0.02"], "leave out beta_end"),
        (["diffusion.objective=flow", "diffusion.zero_terminal_snr=true"], "leave out zero_"),
    ],
)
def test_settings_of_the_diffusion_that_contradict_each_other_are_refused(
    overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("demo/diffusion", overrides)


def test_a_resolved_configuration_of_flow_matching_can_be_read_again(tmp_path: Path) -> None:
    config = load_config("demo/diffusion", ["diffusion.objective=flow"])
    (tmp_path / "again.yaml").write_text(dump_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
