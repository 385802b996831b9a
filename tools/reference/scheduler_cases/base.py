"""Base configurations of the cases."""

STEPS = (1, 2, 3, 10, 25)
SPACINGS = ("leading", "trailing", "linspace")

# scheduler_config.json of the public checkpoints.
BASE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    clip_sample=False,
)
# A short schedule given number by number.
TRAINED = dict(num_train_timesteps=20, trained_betas=[round(0.001 + 0.012 * i, 4) for i in range(20)])
