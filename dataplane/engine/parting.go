// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/reactor"
	"github.com/ztunnel-go/ztunnel/internal/sock"
)

/* Why a tunnel is not just closed
 *
 * A socket that is closed with something unread, or that gets something
 * afterwards, is reset, and what it had still to send is lost: the end of the
 * last stream. The peer's WINDOW_UPDATEs for that very stream are enough. So
 * where nobody complained only our side is shut, and what comes is thrown away
 * until the peer has shut its own.
 */

// partingTimeout is how long a peer has for that.
const partingTimeout = 2 * time.Second

// farewell begins to close a tunnel that has ended and sent all it had to say.
func (t *Tunnel) farewell() {
	if t.parting {
		return
	}
	if !benign(t.cause) || !t.src.Watching() || unix.Shutdown(t.fd, unix.SHUT_WR) != nil {
		t.close()
		return
	}
	t.parting = true
	t.src.Want(reactor.Readable)
	t.goodbyeDue = t.lane.loop.Now().Add(partingTimeout)
	t.arm()
}

// discard throws away what one read yields, and closes the tunnel at the peer's
// end.
func (t *Tunnel) discard() {
	n, err := sock.ReadNow(t.fd, t.lane.loop.Buf)
	if n == 0 && !errors.Is(err, unix.EAGAIN) {
		t.close()
	}
}
