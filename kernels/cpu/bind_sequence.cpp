// Norms, convolution, state space, attention and routing for Python.
#include "arrays.h"
#include "sequence.h"

using Cube = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using MutableCube = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using MutableIds = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableWeights = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Array>
static auto rows(const Array &array) {
    return rows_of(array, "a matrix has not contiguous rows");
}

template <class A, class B>
static void require_same(const A &a, const B &b, const char *message) {
    require(a.n == b.n && a.width == b.width, message);
}

static void rms_norm_(RowsArray x_, Vector<float> weight, float eps, MutableRowsArray y_) {
    Rows x = rows(x_);
    MutableRows y = rows(y_);
    require_same(x, y, "y is not as x");
    require(weight.size() == x.width && x.width, "weight has not a value for each column");
    LetOthersRun release(4 * x.n * x.width);
    rms_norm(x, weight.data(), eps, y);
}

static void gated_rms_norm_(RowsArray x_, RowsArray gate_, Vector<float> weight, size_t n_groups,
                            float eps,
                            MutableRowsArray y_) {
    Rows x = rows(x_), gate = rows(gate_);
    MutableRows y = rows(y_);
    require_same(x, y, "y is not as x");
    require_same(x, gate, "gate is not as x");
    require(weight.size() == x.width && x.width, "weight has not a value for each column");
    require(n_groups && x.width % n_groups == 0, "the columns are not a multiple of n_groups");
    LetOthersRun release(6 * x.n * x.width);
    gated_rms_norm(x, gate, weight.data(), n_groups, eps, y);
}

static void causal_conv1d_(RowsArray x_, RowsArray past_, RowsArray taps_, Vector<float> bias,
                           MutableRowsArray y_, MutableRowsArray next_) {
    Rows x = rows(x_), past = rows(past_), taps = rows(taps_);
    MutableRows y = rows(y_), next = rows(next_);
    require_same(x, y, "y is not as x");
    require_same(past, next, "next is not as past");
    require(taps.n == past.n + 1 && taps.n <= MAX_TAPS, "taps are not one more than past, or above 16");
    require(past.width == x.width && taps.width == x.width && bias.size() == x.width,
            "past, taps or bias have not the columns of x");
    LetOthersRun release((taps.n + 4) * x.n * x.width);
    causal_conv1d(x, past, taps, bias.data(), y, next);
}

static void state_space_(RowsArray x_, RowsArray b_, RowsArray c_, RowsArray dt_,
                         Vector<float> dt_bias, Vector<float> a_log, Vector<float> d,
                         size_t n_groups, Cube state, MutableRowsArray y_,
                         MutableCube next) {
    Rows x = rows(x_), b = rows(b_), c = rows(c_), dt = rows(dt_);
    MutableRows y = rows(y_);
    size_t n_heads = state.shape(0), head_dim = state.shape(1), state_size = state.shape(2);
    require(n_groups && n_heads % n_groups == 0, "the heads are not a multiple of n_groups");
    require_same(x, y, "y is not as x");
    require_same(b, c, "c is not as b");
    require(x.width == n_heads * head_dim, "x is not [rows, heads * head dim]");
    require(b.n == x.n && b.width == n_groups * state_size, "b is not [rows, groups * state size]");
    require(dt.n == x.n && dt.width == n_heads, "dt is not [rows, heads]");
    require(dt_bias.size() == n_heads && a_log.size() == n_heads && d.size() == n_heads,
            "dt_bias, a_log or d have not a value for each head");
    for (int i = 0; i < 3; i++)
        require(next.shape(i) == state.shape(i), "next is not as state");
    StateSpace s{n_heads, head_dim, n_groups, state_size, dt_bias.data(), a_log.data(), d.data()};
    LetOthersRun release(4 * x.n * x.width * state_size);
    state_space(s, x, b, c, dt, state.data(), y, next.data());
}

static void attention_(RowsArray q_, Cube keys, Cube values, MutableRowsArray y_) {
    Rows q = rows(q_);
    MutableRows y = rows(y_);
    size_t n_kv_heads = keys.shape(1), head_dim = keys.shape(2);
    require_same(q, y, "y is not as q");
    for (int i = 0; i < 3; i++)
        require(keys.shape(i) == values.shape(i), "values are not as keys");
    require(keys.shape(0) >= q.n, "keys are fewer than the rows of q");
    require(n_kv_heads && head_dim && q.width && q.width % (n_kv_heads * head_dim) == 0,
            "the columns of q are not a multiple of the keys'");
    if (q.n == 0) return;
    LetOthersRun release(2 * q.n * keys.shape(0) * q.width);
    attention(q, keys.data(), values.data(), keys.shape(0) - q.n, n_kv_heads, head_dim, y);
}

static void route_(RowsArray logits_, Vector<float> bias, size_t n_groups, size_t n_chosen_groups,
                   bool normalise, float factor, MutableIds ids, MutableWeights weights) {
    Rows logits = rows(logits_);
    size_t n_slots = ids.shape(1);
    require(bias.size() == logits.width, "bias has not a value for each expert");
    require(n_groups && logits.width % n_groups == 0, "the experts are not a multiple of n_groups");
    require(0 < n_chosen_groups && n_chosen_groups <= n_groups, "n_chosen_groups is not 1..n_groups");
    require(0 < n_slots && n_slots <= logits.width / n_groups * n_chosen_groups,
            "ids has more slots than experts can be chosen");
    require(ids.shape(0) == logits.n && weights.shape(0) == logits.n && weights.shape(1) == n_slots,
            "ids and weights are not [rows, slots]");
    LetOthersRun release(8 * logits.n * logits.width);
    route({n_groups, n_chosen_groups, n_slots, normalise, factor}, logits, bias.data(), ids.data(),
          weights.data());
}

void bind_sequence(nb::module_ &module) {
    module.def("rms_norm", rms_norm_, nb::arg("x").noconvert(), nb::arg("weight").noconvert(),
               nb::arg("eps"), nb::arg("y").noconvert());
    module.def("gated_rms_norm", gated_rms_norm_, nb::arg("x").noconvert(),
               nb::arg("gate").noconvert(), nb::arg("weight").noconvert(), nb::arg("n_groups"),
               nb::arg("eps"), nb::arg("y").noconvert());
    module.def("causal_conv1d", causal_conv1d_, nb::arg("x").noconvert(),
               nb::arg("past").noconvert(), nb::arg("taps").noconvert(),
               nb::arg("bias").noconvert(), nb::arg("y").noconvert(), nb::arg("next").noconvert());
    module.def("state_space", state_space_, nb::arg("x").noconvert(), nb::arg("b").noconvert(),
               nb::arg("c").noconvert(), nb::arg("dt").noconvert(), nb::arg("dt_bias").noconvert(),
               nb::arg("a_log").noconvert(), nb::arg("d").noconvert(), nb::arg("n_groups"),
               nb::arg("state").noconvert(), nb::arg("y").noconvert(), nb::arg("next").noconvert());
    module.def("attention", attention_, nb::arg("q").noconvert(), nb::arg("keys").noconvert(),
               nb::arg("values").noconvert(), nb::arg("y").noconvert());
    module.def("route", route_, nb::arg("logits").noconvert(), nb::arg("bias").noconvert(),
               nb::arg("n_groups"), nb::arg("n_chosen_groups"), nb::arg("normalise"),
               nb::arg("factor"), nb::arg("ids").noconvert(), nb::arg("weights").noconvert());
}
