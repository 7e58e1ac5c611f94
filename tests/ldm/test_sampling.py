import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.sampling.noise import starting_noise
from hyperbrush.ldm.sampling.samplers import (
    SAMPLERS,
    classifier_free_guidance,
    find_sampler,
    make_scheduler,
    sample,
    sampler_names,
    with_schedule,
)

NAMES = [
    name for name, one in SAMPLERS.items() if "epsilon" in one.predictions
]  # no flow: test_flow_sampling
OWN_PACE = ("DPM fast", "DPM adaptive")  # their steps are not those that were asked for
LINEAR = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}
STABLE_DIFFUSION = {
    **LINEAR,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
ZERO_SNR = {**STABLE_DIFFUSION, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
SHAPE = (4, 8, 8)


def sigmas_of(config):
    """Noise over signal at each timestep, in float64, computed here and not by diffusers."""
    root = config["beta_schedule"] == "scaled_linear"
    ends = np.array([config["beta_start"], config["beta_end"]])
    betas = np.linspace(*np.sqrt(ends), 1000) ** 2 if root else np.linspace(*ends, 1000)
    signal = np.sqrt(np.cumprod(1 - betas))
    if config.get("rescale_betas_zero_snr"):
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    signal = signal.clip(1e-6)
    return np.sqrt(1 - signal**2) / signal


def gaussian(config, mean, deviation):
    """The optimal network where every element is N(mean, deviation²), for any prediction type."""
    logs = np.log(sigmas_of(config))

    def predict(latents, timestep):
        sigma = math.exp(np.interp(float(timestep), np.arange(1000), logs))
        signal, noise = 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)
        gain = signal * deviation**2 / ((signal * deviation) ** 2 + noise**2)
        x0 = mean + gain * (latents - signal * mean)
        eps = (latents - signal * x0) / noise
        velocity = signal * eps - noise * x0
        return {"epsilon": eps, "v_prediction": velocity, "sample": x0}[config["prediction_type"]]

    return predict


def wavy(latents, timestep):
    """A network that is not linear and reads the timestep."""
    return torch.tanh(latents.roll(1, -1) * 0.7 + latents * 0.3 + float(timestep) / 1000)


CASES = {
    "eps": LINEAR,
    "v": {**LINEAR, "prediction_type": "v_prediction"},
    "x0": {**LINEAR, "prediction_type": "sample"},
    "zero terminal snr": ZERO_SNR,
}


TAKEN = [  # the other pairs are refused, see below
    (name, case)
    for name in NAMES
    for case in CASES
    if CASES[case]["prediction_type"] in SAMPLERS[name].predictions
    and (case != "zero terminal snr" or SAMPLERS[name].zero_terminal_snr)
    # Brownian trees take seconds, whatever the network predicts: one case for each of these, both in turn.
    and not (name in ("DPM++ SDE", "DPM++ 3M SDE Karras") and case == "v")
    and not (name in ("DPM++ SDE Karras", "DPM++ 3M SDE") and case in ("eps", "zero terminal snr"))
]


@pytest.mark.parametrize(("name", "case"), TAKEN)
def test_reaches_a_gaussians_mean_and_variance(name, case):
    config, mean, deviation = CASES[case], 0.6, 0.5
    first_order = name in ("DDIM", "Euler", "Euler a", "DDPM")
    steps = 20 if name == "LCM" else 250 if first_order else 125
    predict = gaussian(config, mean, deviation)
    latents = sample(predict, make_scheduler(name, config), (4, 48, 48), [0, 1, 2], steps)
    assert latents.mean().item() == pytest.approx(mean, abs=0.015)
    if name != "LCM":  # its last step leaves no noise, so that it has to fall short
        near = {"Euler a": 0.08, "DDPM": 0.08, "DPM++ SDE": 0.06, "DPM++ SDE Karras": 0.06}.get(
            name, 0.05 if first_order else 0.035
        )
        assert latents.var().item() == pytest.approx(deviation**2, rel=near)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_reproduce_to_the_bit_and_ignore_the_batch(name):
    scheduler = make_scheduler(name, STABLE_DIFFUSION)
    state = torch.get_rng_state()
    batch = sample(wavy, scheduler, SHAPE, [5, -3, 2**40], 6)
    again = sample(wavy, make_scheduler(name, STABLE_DIFFUSION), SHAPE, [5, -3, 2**40], 6)
    assert torch.equal(batch, again)
    assert torch.equal(state, torch.get_rng_state())
    for index, seed in enumerate([5, -3, 2**40]):
        alone = sample(wavy, scheduler, SHAPE, [seed], 6)
        assert (alone[0] - batch[index]).abs().max() < 1e-5
    assert (batch[0] - batch[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "name",
    [
        "Euler a",
        "DPM++ 2M SDE",
        "DPM++ 2M SDE Karras",
        "DPM++ SDE",
        "DPM++ SDE Karras",
        "LCM",
        "DDPM",
        "DPM++ 2S a",
        "DPM2 a Karras",
        "DPM++ 3M SDE",
        "DPM fast",
        "DPM adaptive",
    ],
)
def test_noise_on_the_way_comes_from_the_seed(name):
    scheduler, start = make_scheduler(name, STABLE_DIFFUSION), torch.zeros(1, *SHAPE)
    one, two = (sample(wavy, scheduler, SHAPE, [s], 6, latents=start) for s in (1, 2))
    assert (one - two).abs().max() > 0.1


PROCESSES = {
    "stable diffusion": STABLE_DIFFUSION,
    "zero snr": ZERO_SNR,
    "cosine": {"beta_schedule": "cosine"},
}


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("name", "process"),
    [(n, p) for n in NAMES for p in PROCESSES if p != "zero snr" or SAMPLERS[n].zero_terminal_snr],
)
def test_any_number_of_steps_is_finite_and_told(name, steps, process):
    config = PROCESSES[process]
    told = []
    predict = gaussian({**ZERO_SNR, **config}, 0.0, 1.0) if config is ZERO_SNR else wavy
    latents = sample(
        predict,
        make_scheduler(name, config),
        SHAPE,
        [0],
        steps,
        on_step=lambda step, of, x: told.append((step, of, tuple(x.shape))),
    )
    assert torch.isfinite(latents).all()
    if name in OWN_PACE:
        assert told[-1] == (steps, steps, (1, *SHAPE))
        assert [step for step, _, _ in told] == sorted({step for step, _, _ in told})
    else:
        assert told == [(n, steps, (1, *SHAPE)) for n in range(1, steps + 1)]


@pytest.fixture(scope="module")
def pipe():
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=True,
        steps_offset=1,
    )
    built = StableDiffusionPipeline(
        vae, text.eval(), None, unet, scheduler, None, None, requires_safety_checker=False
    )
    built.set_progress_bar_config(disable=True)
    return built


SWAPS = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE Karras": (
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    ),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM++ SDE Karras": ("DPMSolverSDEScheduler", {"use_karras_sigmas": True}),
}


@pytest.mark.parametrize("name", SWAPS)
def test_same_pictures_as_diffusers_pipeline(name, pipe, monkeypatch):
    import diffusers

    seeds, steps, scale = [7, 8, 9], 6, 5.0
    config = dict(pipe.scheduler.config)
    swap, options = SWAPS[name]
    monkeypatch.setattr(pipe, "scheduler", getattr(diffusers, swap).from_config(config, **options))
    pipe.scheduler.noise_sampler_seed = seeds  # of DPM++ SDE, which reads no generator
    with torch.no_grad():
        context, null = (pipe.text_encoder(torch.tensor([ids] * 3))[0] for ids in ([1, 2, 3], [4, 5, 6]))
    theirs = pipe(
        prompt_embeds=context,
        negative_prompt_embeds=null,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        num_inference_steps=steps,
        guidance_scale=scale,
        height=16,
        width=16,
        output_type="latent",
    ).images

    def predict(latents, timestep):
        both = pipe.unet(torch.cat([latents] * 2), timestep, torch.cat([null, context])).sample
        return classifier_free_guidance(*both.chunk(2), scale)

    ours = sample(predict, make_scheduler(name, config), SHAPE, seeds, steps)
    assert theirs.abs().max() > 0.1
    size = theirs.abs().max() if name == "DPM++ SDE Karras" else 1  # torchsde rounds to 6 digits
    assert (ours - theirs).abs().max() < 1e-5 * size


@pytest.mark.parametrize("name", NAMES)
def test_image_to_image_keeps_the_picture(name):
    scheduler = make_scheduler(name, STABLE_DIFFUSION)
    picture = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    told = []

    def distance(strength):
        predict = gaussian(STABLE_DIFFUSION, 0.0, 1.0)
        out = sample(
            predict,
            scheduler,
            SHAPE,
            [1, 2],
            20,
            image_latents=picture,
            strength=strength,
            on_step=lambda step, of, x: told.append((step, of)),
        )
        assert out.std() == pytest.approx(1, abs=0.3) or name == "LCM"
        return (out - picture).std().item()

    near, far = distance(0.15), distance(0.9)
    if name in OWN_PACE:
        assert {of for _, of in told} == {3, 18}
    else:
        assert told[:3] == [(1, 3), (2, 3), (3, 3)]
        assert len(told) == 3 + 18
    assert near < 0.6 < 0.8 < far


@pytest.mark.parametrize("discretisation", ["diffusers", "webui"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_keeps_its_part_at_every_noise_level(name, strength, discretisation):
    scheduler = make_scheduler(name, STABLE_DIFFUSION)
    picture = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    predict, seen = gaussian(STABLE_DIFFUSION, 0.0, 1.0), []
    logs = np.log(sigmas_of(STABLE_DIFFUSION))

    def noise_seen(latents, timestep):
        """How much of the noise that the network is told of is really in the part that is kept."""
        sigma = math.exp(np.interp(float(timestep), np.arange(1000), logs))
        signal, noise = 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)
        seen.append(float(((latents - signal * picture)[..., :4] / noise).std()))
        return predict(latents, timestep)

    def draw(of, mask):
        return sample(
            of,
            scheduler,
            SHAPE,
            [1, 2],
            8,
            image_latents=picture,
            strength=strength,
            mask=mask,
            discretisation=discretisation,
        )

    out = draw(noise_seen, mask)
    if name not in OWN_PACE:  # between their steps the network is asked at places of their own
        assert seen[:: scheduler.order] == pytest.approx([1.0] * len(seen[:: scheduler.order]), abs=0.2)
    assert (out[..., :4] == picture[..., :4]).all()
    assert (out[..., 4:] - picture[..., 4:]).std() > 0.3
    assert (draw(predict, torch.ones(2, 1, 8, 8)) == draw(predict, None)).all()


def test_plms_repeats_its_second_timestep_from_anywhere():
    visited, picture = [], torch.zeros(1, *SHAPE)

    def predict(latents, timestep):
        visited.append(int(timestep))
        return wavy(latents, timestep)

    scheduler = make_scheduler("PLMS", STABLE_DIFFUSION)
    sample(predict, scheduler, SHAPE, [0], 10, image_latents=picture, strength=0.5)
    assert visited == [401, 301, 301, 201, 101, 1]


def test_guidance():
    unconditional, conditional = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(classifier_free_guidance(unconditional, conditional, 0.0), unconditional)
    one = classifier_free_guidance(unconditional, conditional, 1.0)
    assert torch.allclose(one, conditional, atol=1e-6)
    plain = classifier_free_guidance(unconditional, conditional, 7.0)
    assert torch.allclose(plain, 7 * conditional - 6 * unconditional, atol=1e-5)
    full = classifier_free_guidance(unconditional, conditional, 7.0, rescale=1.0)
    assert torch.allclose(full.std((1, 2, 3)), conditional.std((1, 2, 3)), atol=1e-5)
    half = classifier_free_guidance(unconditional, conditional, 7.0, rescale=0.5)
    assert torch.allclose(half, (full + plain) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("euler", "Euler"),
        ("k_euler", "Euler"),
        ("euler_a", "Euler a"),
        ("k_euler_a", "Euler a"),
        ("Euler Ancestral", "Euler a"),
        ("EULER A", "Euler a"),
        ("heun", "Heun"),
        ("ddim", "DDIM"),
        ("plms", "PLMS"),
        ("PNDM", "PLMS"),
        ("dpmpp_2m_karras", "DPM++ 2M Karras"),
        ("dpm++ 2m karras", "DPM++ 2M Karras"),
        ("k_dpmpp_2m_ka", "DPM++ 2M Karras"),
        ("dpmpp_2m_sde_karras", "DPM++ 2M SDE Karras"),
        ("DPM++ SDE Karras", "DPM++ SDE Karras"),
        ("dpmpp-sde-karras", "DPM++ SDE Karras"),
        ("uni_pc", "UniPC"),
        ("lcm", "LCM"),
        ("k_dpm_2_a_ka", "DPM2 a Karras"),
        ("k_dpmpp_2s_a", "DPM++ 2S a"),
        ("dpmpp_3m_sde_exponential", "DPM++ 3M SDE Exponential"),
        ("k_dpm_ad", "DPM adaptive"),
        ("flow_match_euler", "Flow Euler"),
        ("Euler SGM Uniform", "Euler SGM Uniform"),
        ("euler_a_karras", "Euler a Karras"),
        ("DPM++ 2M beta", "DPM++ 2M Beta"),
    ],
)
def test_spellings(spelling, name):
    assert find_sampler(spelling).name == name


@pytest.mark.parametrize(
    ("sampler", "schedule", "name"),
    [
        ("DPM++ 2M", "", "DPM++ 2M Karras"),
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ 2M", "Normal", "DPM++ 2M"),
        ("DPM++ 2M Karras", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "karras", "DPM++ 2M Karras"),
        ("DPM++ 2M SDE", "automatic", "DPM++ 2M SDE Exponential"),
        ("DPM++ 3M SDE", "sgm_uniform", "DPM++ 3M SDE SGM Uniform"),
        ("Euler", "Automatic", "Euler"),
        ("Euler", "Simple", "Euler Simple"),
        ("Restart", "Automatic", "Restart"),
        ("DDIM", "Automatic", "DDIM"),
    ],
)
def test_a_schedule_beside_the_sampler(sampler, schedule, name):
    assert with_schedule(sampler, schedule) == name


@pytest.mark.parametrize(
    ("sampler", "schedule", "message"),
    [
        ("DDIM", "Karras", "'DDIM' has no noise schedule 'Karras': it chooses its steps itself"),
        ("Restart", "Beta", "'Restart' has its noise schedule in its name|it has Karras already"),
        ("DPM++ 2M Karras", "Uniform", "has its noise schedule in its name"),
        ("Euler", "Karas", "unknown noise schedule 'Karas'; did you mean 'Karras'"),
        ("Eulr", "Karras", "unknown sampler 'Eulr'"),
    ],
)
def test_a_schedule_that_contradicts(sampler, schedule, message):
    with pytest.raises(UserError, match=message):
        with_schedule(sampler, schedule)


def test_adaptive_steps_of_a_picture_are_its_own():
    scheduler, seen = make_scheduler("DPM adaptive", STABLE_DIFFUSION), []
    alone = sample(wavy, scheduler, SHAPE, [1], 4, on_step=lambda step, of, x: seen.append(x.clone()))
    both = sample(wavy, scheduler, SHAPE, [7, 1], 4)
    assert (both[1] - alone[0]).abs().max() < 1e-5
    assert torch.equal(seen[-1], alone)


def test_unknown_sampler():
    assert len(sampler_names()) == 30
    with pytest.raises(UserError, match=r"unknown sampler 'Eulr'; did you mean 'Euler'.*Known: DDIM"):
        make_scheduler("Eulr", STABLE_DIFFUSION)


def test_what_a_sampler_cannot_do_is_refused():
    with pytest.raises(UserError, match=r"'epsilon' cannot be sampled with zero terminal SNR"):
        make_scheduler("DDIM", {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True})
    with pytest.raises(UserError, match=r"'epsilon' cannot be sampled with zero terminal SNR"):
        make_scheduler("DDIM", {"trained_betas": [0.1, 0.5, 1.0]})
    with pytest.raises(
        UserError, match=r"'Heun' diverges on a model with zero terminal SNR; take one of DDIM"
    ):
        make_scheduler("Heun", ZERO_SNR)
    with pytest.raises(
        UserError, match=r"'Euler' cannot use a model that predicts 'sample'; take one of DDIM"
    ):
        make_scheduler("Euler", {**LINEAR, "prediction_type": "sample"})
    with pytest.raises(UserError, match="unknown prediction type 'eps'; did you mean 'epsilon'"):
        make_scheduler("DDIM", {**LINEAR, "prediction_type": "eps"})


@pytest.mark.parametrize("name", ["DDIM", "Euler", "DPM++ 2M Karras"])
def test_latents_given_are_the_noise_of_a_picture_gone_on_from(name):
    def draw(seed, **options):
        picture = torch.full((1, *SHAPE), 0.5)
        return sample(
            wavy,
            make_scheduler(name, STABLE_DIFFUSION),
            SHAPE,
            [seed],
            6,
            image_latents=picture,
            strength=0.7,
            **options,
        )

    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(7))
    assert torch.equal(draw(1, latents=noise), draw(2, latents=noise))
    assert not torch.equal(draw(1, latents=noise), draw(1))


def test_an_edm_process_is_refused():
    with pytest.raises(UserError, match="scheduler is EDMEulerScheduler: EDM models can be drawn"):
        make_scheduler(
            "Euler", {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon", "sigma_max": 80.0}
        )


def test_what_cannot_be_sampled_is_refused():
    def draw(seeds=(0,), steps=4, name="DDIM", **options):
        sample(wavy, make_scheduler(name, STABLE_DIFFUSION), SHAPE, seeds, steps, **options)

    with pytest.raises(UserError, match="one seed for each"):
        draw(seeds=[])
    with pytest.raises(UserError, match="1 to 499 steps; got 0"):
        draw(steps=0)
    with pytest.raises(UserError, match="1 to 50 steps; got 51"):
        draw(steps=51, name="LCM")
    with pytest.raises(UserError, match="1 to 499 steps; got 500"):
        draw(steps=500)
    with pytest.raises(UserError, match="a mask needs image_latents"):
        draw(mask=torch.ones(1, 1, 8, 8))
    with pytest.raises(UserError, match=r"mask has shape \(1, 1, 4, 8\); expected \(1, 1, 8, 8\)"):
        draw(mask=torch.ones(1, 1, 4, 8), image_latents=torch.zeros(1, *SHAPE))
    with pytest.raises(UserError, match="needs image_latents"):
        draw(strength=0.5)
    with pytest.raises(UserError, match="leaves none to run"):
        draw(strength=0.2, image_latents=torch.zeros(1, *SHAPE))
    with pytest.raises(UserError, match=r"latents have shape \(1, 4, 8, 8\); expected \(2, 4, 8, 8\)"):
        draw(seeds=[0, 1], latents=torch.zeros(1, *SHAPE))


def test_only_the_models_settings_are_taken_over():
    config = {**STABLE_DIFFUSION, "use_karras_sigmas": True, "clip_sample": True, "sigma_max": 3.0}
    euler = make_scheduler("Euler", config)
    assert not euler.config.use_karras_sigmas
    assert euler.config.sigma_max is None
    assert make_scheduler("DDIM", config).config.clip_sample is False
    assert make_scheduler("DDIM", {}).config.steps_offset == 1
    assert make_scheduler("DDIM", {"steps_offset": 0}).config.steps_offset == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_gets_the_models_process(name):
    config = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    expected = 1 / (1 + sigmas_of(STABLE_DIFFUSION) ** 2)
    for given in (
        config,
        {**config, "trained_betas": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2},
    ):
        scheduler = make_scheduler(name, given)
        assert np.allclose(scheduler.alphas_cumprod.double().numpy(), expected, rtol=1e-3)
        assert scheduler.config.prediction_type == "v_prediction"
    if SAMPLERS[name].zero_terminal_snr:
        zero = make_scheduler(name, ZERO_SNR)
        expected = 1 / (1 + sigmas_of(ZERO_SNR) ** 2)
        assert np.allclose(zero.alphas_cumprod.double().numpy(), expected, atol=1e-4)
        assert zero.config.timestep_spacing == "trailing"
        zero.set_timesteps(10)
        assert float(zero.timesteps[0]) == pytest.approx(999)


def test_import_is_light():
    code = "import sys, hyperbrush.ldm.sampling.samplers; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_in_half_precision_is_that_of_a_seed_rounded(dtype):
    generators = [[torch.Generator().manual_seed(7)] for _ in range(2)]
    half, whole = (
        starting_noise((4, 8, 8), g, d) for g, d in zip(generators, (dtype, torch.float32), strict=True)
    )
    assert torch.equal(half, whole.to(dtype))
