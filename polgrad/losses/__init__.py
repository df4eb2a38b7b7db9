"""Log-probabilities, scores or values in, unreduced losses out: minimised, never divided by a count.

The files are named after the row that a loss is a number of. What is no loss stands elsewhere: masks and
weights of importance ratios in `polgrad.ratios` and `polgrad.selection`, coefficients over time in
`polgrad.schedules`, running means in `polgrad.running`, learned rewards in `polgrad.reward_models`.

One number a token (tokens.py)
  reinforce                       score function
  ppo_clip                        clipped ratio; clip-higher, dual clip
  cispo, sapo                     capped, softly gated ratio
  dppo_tv, dppo_kl                mask tokens by the change of their probability
  dro                             a squared log ratio instead of a ratio
  clip_cov, kl_cov                leave out, or penalise, tokens of high covariance (`polgrad.selection`)
  nft                             likelihood of right answers, wrong ones by an implicit policy
Terms beside them (penalties.py)
  kl_penalty, behavior_kl         KL to a reference, to the policy that drew the samples
  kl_hinge                        a bound on such a KL
  entropy_bonus
One number an answer (sequences.py)
  gspo, luspo, gmpo               the geometric mean of the tokens' ratios, clipped
  gspo_token, vespo, vespo_weights   the ratio of the answer, for one number a token
  ppo_clip_sequence               the product of the tokens' ratios, clipped
  topr                            REINFORCE on logged data, tapered weights
  f_dpg                           any f-divergence to a target (`polgrad.distributions`)
  nash_md                         preferences against an opponent
Likelihood of answers (supervised.py)
  imitation, f_sft, unlikelihood  of given answers
  best_of_n, reward_weighted      of the best sample of a prompt, or of all by their reward
All samples of a prompt (groups.py)
  disco, disco_b                  right answers ranked over wrong ones
  copg_group                      contrastive policy gradient of all pairs
  pairwise_policy_gradient, p3o_v1, p3o_v2   differences of rewards, without and with clips
A pair of answers (pairs.py)
  dpo, ipo                        logistic, squared
  hinge, exo, discopop, exponential_margin, linear_margin
  robust_dpo                      labels flipped at a known rate
  nca, bco, apo_zero, apo_down    each answer compared with the reference
  aot                             margins by quantiles of the batch
  rpo, rpo_average                imitation beside dpo
A pair that the policy makes (pairs_online.py)
  inpo, sppo, dno                 steps of learning in a game of preferences
  xpo                             optimism beside dpo
  copg                            a partner as the baseline
A pair without a reference (reference_free.py)
  simpo, alphapo, cpo, slic, tpo, orpo
  cpl                             segments of behaviour
An answer with a label (labels.py)
  kto, bco_unpaired, aot_unpaired
A list of answers (lists.py)
  lipo                            pairs weighed by what their order is worth to the list
  pairwise_logistic, pairwise_hinge, listwise_softmax, pointwise_squared, pointwise_sigmoid
  plackett_luce, cpl_ranked
  ranking                         places, gains, weights and labels of such a list (ranking.py)
One number a token, with a teacher (distillation.py)
  kdrl                            a policy gradient and the reverse KL to the teacher
  top_k_kl                        that KL on the likeliest tokens, from logits
Values (values.py)
  value_loss, td_loss, expectile_loss, implicit_value
What losses are fed with (inputs.py)
  implicit_reward, preference_margin, f_dpo_score, desensitized_logp, log_odds, segment_score,
  sequence_score, inpo_contrast, f_dpg_pseudo_reward
  wpo_weight, density_weight, nft_prompt_weight, topr_weights, kto_reference_point
Losses made of losses (transforms.py)
  debias_flips, smooth_labels     any pair loss, with labels flipped or believed to be wrong
  flipped_probability, unflipped_probability
"""

from polgrad.losses import ranking
from polgrad.losses.distillation import kdrl, top_k_kl
from polgrad.losses.groups import (
    copg_group,
    disco,
    disco_b,
    p3o_v1,
    p3o_v2,
    pairwise_policy_gradient,
)
from polgrad.losses.inputs import (
    density_weight,
    desensitized_logp,
    f_dpg_pseudo_reward,
    f_dpo_score,
    implicit_reward,
    inpo_contrast,
    kto_reference_point,
    log_odds,
    nft_prompt_weight,
    preference_margin,
    segment_score,
    sequence_score,
    topr_weights,
    wpo_weight,
)
from polgrad.losses.labels import aot_unpaired, bco_unpaired, kto
from polgrad.losses.lists import (
    cpl_ranked,
    lipo,
    listwise_softmax,
    pairwise_hinge,
    pairwise_logistic,
    plackett_luce,
    pointwise_sigmoid,
    pointwise_squared,
)
from polgrad.losses.pairs import (
    aot,
    apo_down,
    apo_zero,
    bco,
    discopop,
    dpo,
    exo,
    exponential_margin,
    hinge,
    ipo,
    linear_margin,
    nca,
    robust_dpo,
    rpo,
    rpo_average,
)
from polgrad.losses.pairs_online import copg, dno, inpo, sppo, xpo
from polgrad.losses.penalties import behavior_kl, entropy_bonus, kl_hinge, kl_penalty
from polgrad.losses.reference_free import alphapo, cpl, cpo, orpo, simpo, slic, tpo
from polgrad.losses.sequences import (
    f_dpg,
    gmpo,
    gspo,
    gspo_token,
    luspo,
    nash_md,
    ppo_clip_sequence,
    topr,
    vespo,
    vespo_weights,
)
from polgrad.losses.supervised import best_of_n, f_sft, imitation, reward_weighted, unlikelihood
from polgrad.losses.tokens import (
    cispo,
    clip_cov,
    dppo_kl,
    dppo_tv,
    dro,
    kl_cov,
    nft,
    ppo_clip,
    reinforce,
    sapo,
)
from polgrad.losses.transforms import (
    debias_flips,
    flipped_probability,
    smooth_labels,
    unflipped_probability,
)
from polgrad.losses.values import expectile_loss, implicit_value, td_loss, value_loss

__all__ = [
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco",
    "bco_unpaired",
    "behavior_kl",
    "best_of_n",
    "cispo",
    "clip_cov",
    "copg",
    "copg_group",
    "cpl",
    "cpl_ranked",
    "cpo",
    "debias_flips",
    "density_weight",
    "desensitized_logp",
    "disco",
    "disco_b",
    "discopop",
    "dno",
    "dpo",
    "dppo_kl",
    "dppo_tv",
    "dro",
    "entropy_bonus",
    "exo",
    "expectile_loss",
    "exponential_margin",
    "f_dpg",
    "f_dpg_pseudo_reward",
    "f_dpo_score",
    "f_sft",
    "flipped_probability",
    "gmpo",
    "gspo",
    "gspo_token",
    "hinge",
    "imitation",
    "implicit_reward",
    "implicit_value",
    "inpo",
    "inpo_contrast",
    "ipo",
    "kdrl",
    "kl_cov",
    "kl_hinge",
    "kl_penalty",
    "kto",
    "kto_reference_point",
    "linear_margin",
    "lipo",
    "listwise_softmax",
    "log_odds",
    "luspo",
    "nash_md",
    "nca",
    "nft",
    "nft_prompt_weight",
    "orpo",
    "p3o_v1",
    "p3o_v2",
    "pairwise_hinge",
    "pairwise_logistic",
    "pairwise_policy_gradient",
    "plackett_luce",
    "pointwise_sigmoid",
    "pointwise_squared",
    "ppo_clip",
    "ppo_clip_sequence",
    "preference_margin",
    "ranking",
    "reinforce",
    "reward_weighted",
    "robust_dpo",
    "rpo",
    "rpo_average",
    "sapo",
    "segment_score",
    "sequence_score",
    "simpo",
    "slic",
    "smooth_labels",
    "sppo",
    "td_loss",
    "top_k_kl",
    "topr",
    "topr_weights",
    "tpo",
    "unflipped_probability",
    "unlikelihood",
    "value_loss",
    "vespo",
    "vespo_weights",
    "wpo_weight",
    "xpo",
]
