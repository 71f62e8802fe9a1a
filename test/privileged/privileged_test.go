// SPDX-License-Identifier: Apache-2.0

package privileged

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNamesWhatIsLacking(t *testing.T) {
	all := uint64(1)<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_BPF
	for _, tc := range []struct {
		held uint64
		want []string
	}{
		{all, nil},
		{all &^ (1 << unix.CAP_BPF), []string{"CAP_BPF"}},
		{all &^ (1 << unix.CAP_SYS_ADMIN) &^ (1 << unix.CAP_NET_RAW), []string{"CAP_SYS_ADMIN", "CAP_NET_RAW"}},
	} {
		if got := lacking(tc.held); !slices.Equal(got, tc.want) {
			t.Errorf("lacking(%#x) = %v, want %v", tc.held, got, tc.want)
		}
	}
}

func TestOrdinaryUsersAreNotEnough(t *testing.T) {
	if os.Geteuid() != 0 && Missing() == nil {
		t.Error("an ordinary user passes for root")
	}
}
