// What lies between the linears: norms, convolution, state space, attention, routing.
#pragma once

#include "linear.h"

constexpr size_t MAX_TAPS = 16;

void rms_norm(Rows x, const float *weight, float eps, MutableRows y);

// y * silu(gate) first, then RMS norm within each of n_groups.
void gated_rms_norm(Rows x, Rows gate, const float *weight, size_t n_groups, float eps,
                    MutableRows y);

// Depthwise and causal, then SiLU. past [n_taps - 1, channels]: the rows before x; next: after it.
// taps [n_taps, channels].
void causal_conv1d(Rows x, Rows past, Rows taps, const float *bias, MutableRows y,
                   MutableRows next);

// S_t = exp(dt A) S + dt x B^T, y = S C + D x, dt = softplus(dt + bias), A = -exp(A_log).
struct StateSpace {
    size_t n_heads, head_dim, n_groups, state_size;
    const float *dt_bias, *a_log, *d;
};
// x, y [n, heads * head dim], b and c [n, groups * state size], dt [n, heads];
// state, next [heads, head dim, state size].
void state_space(const StateSpace &s, Rows x, Rows b, Rows c, Rows dt, const float *state, MutableRows y,
                 float *next);

// Causal grouped-query attention. q, y [n, heads * head dim]; keys, values: those of all rows up to
// the last of q, [n_past + n, kv heads, head dim].
void attention(Rows q, const float *keys, const float *values, size_t n_past, size_t n_kv_heads,
               size_t head_dim, MutableRows y);

// The experts that each row takes: sigmoid of the logits; the bias steers the choice alone. Of equal
// ones the first. weights: the chosen scores, if `normalise` divided by their sum, times `factor`.
struct Routing {
    size_t n_groups, n_chosen_groups, n_slots;
    bool normalise;
    float factor;
};
void route(const Routing &r, Rows logits, const float *bias, int32_t *ids, float *weights);
