// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A ServeFunc does what a plugin asks. ns is there for Add and Check, and the
// function's to close. ctx ends when the plugin has gone or its time is up.
type ServeFunc func(ctx context.Context, req Request, ns *netns.NS) error

// maxDescriptors is SCM_MAX_FD, as in internal/zds.
const maxDescriptors = 253

// Serve listens at path for plugins until ctx ends, and answers each with what
// fn says. Only root is heard.
func Serve(ctx context.Context, path string, fn ServeFunc, log *slog.Logger) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		return fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var plugins sync.WaitGroup
	defer plugins.Wait()
	for {
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case err != nil:
			return fmt.Errorf("listen for the CNI plugin: %w", err)
		}
		plugins.Go(func() {
			defer conn.Close()
			serve(ctx, conn, fn, log)
		})
	}
}

func serve(ctx context.Context, conn *net.UnixConn, fn ServeFunc, log *slog.Logger) {
	began := time.Now()
	req, err := answerOne(ctx, conn, fn)
	attrs := []any{"op", string(req.Op), "namespace", req.Namespace, "name", req.Name, "uid", req.UID, "took", time.Since(began)}
	var a answer
	if err != nil {
		log.Warn("CNI request failed", append(attrs, "error", err)...)
		a.Error = err.Error()
		if len(a.Error) > maxPacket/2 {
			a.Error = a.Error[:maxPacket/2]
		}
	} else {
		log.Debug("CNI request", attrs...)
	}
	text, _ := json.Marshal(a) // a string
	_ = conn.SetWriteDeadline(time.Now().Add(patience))
	_, _ = conn.Write(text) // a plugin that has gone needs no answer
}

// answerOne reads a request and has it done.
func answerOne(ctx context.Context, conn *net.UnixConn, fn ServeFunc) (Request, error) {
	if err := isRoot(conn); err != nil {
		return Request{}, err
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	packet, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(maxDescriptors*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(packet, oob)
	if err != nil {
		return Request{}, fmt.Errorf("read the request: %w", err)
	}
	req, ns, err := parse(packet[:n], oob[:oobn], flags)
	if err != nil {
		return req, err
	}
	wait := req.Wait
	if wait == 0 {
		wait = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	_ = conn.SetReadDeadline(time.Now().Add(wait + patience))
	var watching sync.WaitGroup
	watching.Go(func() { // ends with the plugin, or by the deadline below
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	})
	err = fn(ctx, req, ns)
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	watching.Wait()
	return req, err
}

// isRoot says whether the other end is (SO_PEERCRED); the socket's mode says
// so already, but a mode is easily changed.
func isRoot(conn *net.UnixConn) error {
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := rc.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("the plugin runs as user %d, and must as %d", cred.Uid, os.Geteuid())
	}
	return nil
}
