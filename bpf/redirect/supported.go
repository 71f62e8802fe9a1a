// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Supported asks the kernel for everything the programs need and names the
// first thing it lacks. Kernels are asked, never their versions: distributions
// carry features back. The versions in the text are where mainline has them.
func Supported() error {
	if err := features.HaveProgramType(ebpf.SkLookup); err != nil {
		return fmt.Errorf("sk_lookup programs (Linux 5.9): %w", err)
	}
	if err := features.HaveMapType(ebpf.SkStorage); err != nil {
		return fmt.Errorf("socket storage (Linux 5.2): %w", err)
	}
	needs := []struct {
		kind   ebpf.ProgramType
		helper asm.BuiltinFunc
		since  string
	}{
		{ebpf.CGroupSockAddr, asm.FnGetNetnsCookie, "5.7"},
		{ebpf.CGroupSockAddr, asm.FnSetsockopt, "5.8"},
		{ebpf.CGroupSockAddr, asm.FnSkStorageGet, "5.10"},
		{ebpf.CGroupSockAddr, asm.FnSkLookupTcp, "4.20"},
		{ebpf.CGroupSock, asm.FnGetNetnsCookie, "5.7"},
		{ebpf.CGroupSKB, asm.FnSkStorageGet, "5.2"},
		{ebpf.SockOps, asm.FnGetNetnsCookie, "5.15"},
		{ebpf.SockOps, asm.FnSkStorageGet, "5.4"},
		{ebpf.SkLookup, asm.FnSkAssign, "5.9"},
	}
	for _, n := range needs {
		if err := features.HaveProgramHelper(n.kind, n.helper); err != nil {
			return fmt.Errorf("helper %v in %v programs (Linux %s): %w", n.helper, n.kind, n.since, err)
		}
	}
	return nil
}
