// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// Redirection by others: what istio-cni, or whoever prepares a pod for a
// dedicated proxy, does with iptables (see rig.Redirect).

// groupRules know the proxy by its group, as those of sidecars do, for one that
// may not mark. Nothing leads replies to a client's address back to it.
const groupRules = `
-t nat -A PREROUTING ! -d LOOP -p tcp ! --dport 15008 -j REDIRECT --to-ports 15006
-t nat -A OUTPUT ! -o lo -p udp --dport 53 -m owner ! --gid-owner 1337 -j REDIRECT --to-ports 15053
-t nat -A OUTPUT ! -o lo -p tcp -m owner ! --gid-owner 1337 -j REDIRECT --to-ports 15001
`

// redirect puts rules of both families into a pod.
func redirect(t *testing.T, pod *netlab.Pod, rules string) {
	t.Helper()
	err := rig.Redirect(pod, rules)
	if errors.Is(err, exec.ErrNotFound) {
		privileged.Lacking(t, fmt.Errorf("iptables stands in for istio-cni: %w", err))
	}
	must(t, err)
}
