// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"time"
)

// Hastily is Copy without the seconds.
func Hastily(ctx context.Context, client, upstream Conn, counts Counts) error {
	return copyFor(ctx, client, upstream, counts, patience{linger: 300 * time.Millisecond, stall: 100 * time.Millisecond})
}
