// What a model is given, by feature: ids of all rows one after the other, how many each row has, or numbers.

#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>

#include <string>

using Columns = c10::Dict<std::string, at::Tensor>;  // a handle: a copy of it names the same columns
