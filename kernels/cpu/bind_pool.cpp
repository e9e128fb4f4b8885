// The threads and the instruction set for Python.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "kernel_table.h"
#include "kernels.h"

static std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (auto table = runnable_kernels(); *table; table++) names.push_back((*table)->name);
    return names;
}

static void use_instruction_set(const std::string &name) {
    for (auto table = runnable_kernels(); *table; table++)
        if (name == (*table)->name) return use_kernels(**table);
    throw std::invalid_argument("instruction set " + name + " is not one of instruction_sets()");
}

void bind_pool(nb::module_ &module) {
    module.def("set_threads", [](int n_threads) {
        require(n_threads >= 0, "n_threads is negative");
        pool::set_size(n_threads);
    }, nb::arg("n_threads"));
    module.def("threads", pool::size);
    module.def("instruction_sets", instruction_sets);
    module.def("instruction_set", [] { return std::string(kernels().name); });
    module.def("use_instruction_set", use_instruction_set, nb::arg("name"));
}
