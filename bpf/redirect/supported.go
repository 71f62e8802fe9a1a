// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Supported asks the kernel for everything the programs need and names the
// first thing it lacks.
func Supported() error {
	for _, n := range needs() {
		if err := n.ask(); err != nil {
			return err
		}
	}
	return nil
}

// Lacks is [Supported] for who wants to know all of it. What the kernel refuses
// to say is the second result: without privileges it says nothing.
func Lacks() (missing []error, refused error) {
	for _, n := range needs() {
		err := n.ask()
		switch {
		case errors.Is(err, ebpf.ErrNotSupported):
			missing = append(missing, err)
		case err != nil:
			return missing, err
		}
	}
	return missing, nil
}

// A need is something that the programs cannot do without. Kernels are asked,
// never their versions: distributions carry features back. The versions in the
// text are where mainline has them.
type need struct {
	kind   ebpf.ProgramType
	helper asm.BuiltinFunc // 0: the type of programs itself, or socket storage
	since  string
}

func needs() []need {
	return []need{
		{ebpf.SkLookup, 0, "5.9"},
		{ebpf.UnspecifiedProgram, 0, "5.2"},
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
}

func (n need) ask() error {
	switch {
	case n.kind == ebpf.UnspecifiedProgram:
		if err := features.HaveMapType(ebpf.SkStorage); err != nil {
			return fmt.Errorf("socket storage (Linux %s): %w", n.since, err)
		}
	case n.helper == 0:
		if err := features.HaveProgramType(n.kind); err != nil {
			return fmt.Errorf("%v programs (Linux %s): %w", n.kind, n.since, err)
		}
	default:
		if err := features.HaveProgramHelper(n.kind, n.helper); err != nil {
			return fmt.Errorf("helper %v in %v programs (Linux %s): %w", n.helper, n.kind, n.since, err)
		}
	}
	return nil
}
