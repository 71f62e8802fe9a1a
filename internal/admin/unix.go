// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenUnix is [Listen] at a path instead of an address: a socket that only
// its owner may connect to (0600), at no moment anyone else. A socket there to
// which nobody listens any more is replaced; anything else is left alone, and
// an error. It is removed at the end.
func ListenUnix(component, path string, logger *slog.Logger) (*Server, error) {
	if err := clearStale(path); err != nil {
		return nil, fmt.Errorf("%s server starts: %w", component, err)
	}
	cfg := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// Before it is bound: Linux gives the file this mode (unix_bind).
		var changed error
		if err := c.Control(func(fd uintptr) { changed = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return changed
	}}
	l, err := cfg.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%s server starts: %w", component, err)
	}
	return &Server{component: component, log: logger, gate: newGate(), listeners: []net.Listener{l}}, nil
}

// clearStale makes room for a socket.
func clearStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s is in use by another process", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
