// Whether what Python objects hold is what it was: compared by identity, in a hundredth of Python's time.
#pragma once

#include <algorithm>
#include <vector>

#include "tensors.h"

namespace ulam {

// same_values(dicts, values): whether the values of these dicts, one dict after another, are exactly these objects.
inline PyObject* same_values(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count != 2 || !PyList_Check(given[0]) || !PyList_Check(given[1]))
    return PyErr_Format(PyExc_TypeError, "same_values: got %zd arguments, expected two lists", count);
  PyObject *const dicts = given[0], *const values = given[1];
  Py_ssize_t met = 0;
  for (Py_ssize_t d = 0; d < PyList_GET_SIZE(dicts); ++d) {
    PyObject *const dict = PyList_GET_ITEM(dicts, d), *value;
    if (!PyDict_Check(dict)) return PyErr_Format(PyExc_TypeError, "dicts: got %R, expected a dict", dict);
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, nullptr, &value); ++met)
      if (met >= PyList_GET_SIZE(values) || PyList_GET_ITEM(values, met) != value) Py_RETURN_FALSE;
  }
  return PyBool_FromLong(met == PyList_GET_SIZE(values));
}

// identical(these, those): whether these are the same objects, in the same order; lists or tuples.
inline PyObject* identical(PyObject*, PyObject* const* given, Py_ssize_t count) {
  const auto sequence = [](PyObject* object) { return PyList_Check(object) || PyTuple_Check(object); };
  if (count != 2 || !sequence(given[0]) || !sequence(given[1]))
    return PyErr_Format(PyExc_TypeError, "identical: got %zd arguments, expected two lists or tuples", count);
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(given[0]);
  if (size != PySequence_Fast_GET_SIZE(given[1])) Py_RETURN_FALSE;
  PyObject** const these = PySequence_Fast_ITEMS(given[0]);
  return PyBool_FromLong(std::equal(these, these + size, PySequence_Fast_ITEMS(given[1])));
}

// layouts(tensors): where the tensors lie, with their dtypes, shapes and strides, as bytes to be compared; None where
// one has no view.
inline PyObject* layouts(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count != 1 || !PyList_Check(given[0]))
    return PyErr_Format(PyExc_TypeError, "layouts: got %zd arguments, expected a list of tensors", count);
  std::vector<int64_t> found;
  for (Py_ssize_t k = 0; k < PyList_GET_SIZE(given[0]); ++k) {
    const auto view = view_of_parameter(PyList_GET_ITEM(given[0], k));
    if (!view) Py_RETURN_NONE;
    found.insert(found.end(), {reinterpret_cast<int64_t>(view->address<char>()), view->device_type, view->device,
                               view->kind, view->bits, view->dimensions, view->strides != nullptr});
    found.insert(found.end(), view->shape, view->shape + view->dimensions);
    if (view->strides) found.insert(found.end(), view->strides, view->strides + view->dimensions);
  }
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(found.data()),
                                   static_cast<Py_ssize_t>(found.size() * sizeof found[0]));
}

// Adds all of them.
inline void register_changes(pybind11::module_& m) {
  static PyMethodDef functions[] = {
      {"same_values", reinterpret_cast<PyCFunction>(&same_values), METH_FASTCALL,
       "Whether the values of dicts, one after another, are exactly these objects."},
      {"identical", reinterpret_cast<PyCFunction>(&identical), METH_FASTCALL,
       "Whether these are the same objects, in the same order; lists or tuples."},
      {"layouts", reinterpret_cast<PyCFunction>(&layouts), METH_FASTCALL,
       "Where tensors lie, with dtypes, shapes and strides, as bytes; None where one has no view."},
      {},
  };
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw pybind11::error_already_set();
}

}  // namespace ulam
