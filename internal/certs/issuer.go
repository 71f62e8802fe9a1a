// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"context"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// An Issuer is an authority, or the way to one: it makes a new key and has it
// certified for id. It is asked by several goroutines at once, and must return
// soon after ctx ends.
type Issuer interface {
	Issue(ctx context.Context, id identity.ID) (*Bundle, error)
}
