// SPDX-License-Identifier: Apache-2.0

package mtls

import (
	"fmt"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// A SANMismatchError says that the server of a tunnel proved to be somebody
// else than the workload we were sent to. Its text is contract 4.2's.
type SANMismatchError struct {
	Want []identity.ID // any of these would have done
	Got  []identity.ID // the SPIFFE identities that were presented
}

func (e *SANMismatchError) Error() string {
	return fmt.Sprintf("identity verification error: peer did not present the expected SAN (%s), got %s", join(e.Want), join(e.Got))
}

// A TrustDomainMismatchError says that the client of a tunnel belongs to no
// mesh of ours. Its text is contract 4.3's.
type TrustDomainMismatchError struct {
	Want string        // our own trust domain
	Got  []identity.ID // the SPIFFE identities that were presented
}

func (e *TrustDomainMismatchError) Error() string {
	return fmt.Sprintf("identity verification error: peer did not present the expected trustdomain (%s), got %s", e.Want, join(e.Got))
}

func join(ids []identity.ID) string {
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = id.String()
	}
	return strings.Join(s, ",")
}
