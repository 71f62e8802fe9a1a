// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// showPolicy changes the file that the proxies read, with connections open.
func (d *demo) showPolicy(ctx context.Context) {
	to := d.toServer(fixed().server4, portEcho)
	guest, errGuest := d.talking(ctx, d.guest, to)
	client, errClient := d.talking(ctx, d.client, to)
	d.table.check("without policy client and guest may talk to the server", func() (string, error) {
		return "a connection of each stays open", errors.Join(errGuest, errClient)
	})
	if errGuest != nil || errClient != nil {
		return
	}
	d.table.check("the guest is denied: its open connection is cut", func() (string, error) {
		return d.cut(guest)
	})
	d.table.check("the client's open connection goes on", func() (string, error) {
		defer client.Close()
		return "echoed, then closed by the client", client.finish([]byte("still here"))
	})
	d.table.check("a new connection of the guest is denied", func() (string, error) {
		return "ended before a byte", d.refused(ctx, d.guest, to, denied())
	})
	d.table.check("a new connection of the client is not", func() (string, error) {
		return "echoed", d.echo(ctx, d.client, to, d.wire.marker)
	})
	d.showStrict(ctx)
	d.table.check("the policies are taken back: the guest may talk again", func() (string, error) {
		if err := d.enforce(ctx, policies{}); err != nil {
			return "", err
		}
		return "echoed", d.echo(ctx, d.guest, to, d.wire.marker)
	})
}

// showStrict asks for an identity.
func (d *demo) showStrict(ctx context.Context) {
	d.table.check("STRICT: the pod that is not captured is refused", func() (string, error) {
		if err := d.enforce(ctx, policies{strict: true}); err != nil {
			return "", err
		}
		to := toPod(d.server, targetEcho)
		defer d.wire.allow("stranger", between(d.stranger.IPv4, to.addr))()
		return "ended before a byte", d.refused(ctx, d.stranger, to, denied())
	})
	d.table.check("STRICT: the node's probe is not", func() (string, error) { return d.probe(ctx) })
	d.table.check("STRICT: the client is not", func() (string, error) {
		return "echoed", d.echo(ctx, d.client, d.toServer(fixed().server4, portEcho), d.wire.marker)
	})
}

// denied are the flags of a connection that policy refuses: the caller's proxy
// only hears 401 from the other.
func denied() map[string]string {
	return map[string]string{"source": "CONNECT", "destination": "DENY"}
}

// talking is an open connection to the echo server that has been used.
func (d *demo) talking(ctx context.Context, from *pod, to target) (*call, error) {
	c, err := d.open(ctx, from, to)
	if err != nil {
		return nil, err
	}
	if err := c.exchange(d.wire.marker); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// finish uses an open connection once more and lets the server end it.
func (c *call) finish(payload []byte) error {
	_ = c.SetDeadline(time.Now().Add(callWait))
	if err := c.exchange(payload); err != nil {
		return err
	}
	if err := c.closeWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// cut denies the guest and waits for its connection to end.
func (d *demo) cut(c *call) (string, error) {
	defer c.closeWith(map[string]string{"destination": "DENY"})
	began := time.Now()
	if err := d.mesh.SetState(d.state(policies{noGuests: true})); err != nil {
		return "", err
	}
	_ = c.SetDeadline(began.Add(callWait))
	n, err := c.Read(make([]byte, 1))
	if n > 0 || err == nil || isTimeout(err) {
		return "", fmt.Errorf("it was not cut: %d bytes, %v", n, err)
	}
	return fmt.Sprintf("cut %d ms after the file was written", time.Since(began).Milliseconds()), nil
}

// enforce has both proxies follow a new state.
func (d *demo) enforce(ctx context.Context, p policies) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	return d.mesh.Apply(ctx, d.state(p))
}
