// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf/ringbuf"
)

// RoleListener is the role of an application's socket whose end is told by
// [Node.Unheard] (enum role). One that listened before its pod was enrolled has
// none.
const RoleListener = 4

// Unheard calls fn with the cookie of a namespace whenever a socket of an
// application there has stopped to listen, and returns when ctx ends. The
// socket may still be found for a moment. It is told to the process that has
// opened the pins last, for as long as it keeps up: what is lost is counted.
func (n *Node) Unheard(ctx context.Context, fn func(cookie uint64)) error {
	r, err := ringbuf.NewReader(n.maps[redirectMapUnheard])
	if err != nil {
		return fmt.Errorf("read ring of listeners: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer r.Close()
	defer stop()
	var record ringbuf.Record
	for {
		err := r.ReadInto(&record)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read ring of listeners: %w", err)
		}
		if len(record.RawSample) == 8 {
			fn(binary.NativeEndian.Uint64(record.RawSample))
		}
	}
}
