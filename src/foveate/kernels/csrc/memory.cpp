// Large pages under memory that operations of PyTorch will write.
#include "common.h"

namespace foveate {

void expect(Tensor t) {
  dispatch(t, [&](auto* type) { expect_pages(out<char>(t), t.numel() * sizeof(*type)); });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) { m.def("expect(Tensor(a!) t) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) { m.impl("expect", TORCH_BOX(&foveate::expect)); }
