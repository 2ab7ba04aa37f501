// Lean execution as functions of a Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace igfast {

void define_lean_functions(pybind11::module& m);

}  // namespace igfast
