// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// destroyRounds is how often sockets are listed and ended; a connect that was
// under way in the first round is there in the next.
const destroyRounds = 3

// destroyMarked ends the connections of a namespace that need our rules: they
// carry our marks, or are confined and go beyond the namespace (their mark was
// changed). storage is as in tcpSockets.
func destroyMarked(ns *netns.NS, own []netip.Addr, storage int) error {
	for range destroyRounds {
		sockets, err := tcpSockets(ns, everyState&^(1<<tcpListen), storage)
		if err != nil {
			return err
		}
		var ours []tcpSocket
		for _, s := range sockets {
			if dependsOnRules(s, own) {
				ours = append(ours, s)
			}
		}
		if len(ours) == 0 {
			return nil
		}
		if err := destroy(ns, ours); err != nil {
			return err
		}
	}
	return nil
}

func dependsOnRules(s tcpSocket, own []netip.Addr) bool {
	if s.mark&redirect.MarkCaptureMask == redirect.MarkCapture ||
		s.mark&redirect.MarkDeliveryMask == redirect.MarkDelivery {
		return true
	}
	remote := s.remote.Addr()
	return s.role == roleConfine && !remote.IsLoopback() && !slices.Contains(own, remote)
}

// Cleanup removes every trace of tier A from the machine: pins, programs and,
// from every namespace that can still be reached, sockets, rules, routes and
// settings. It may be run again at any time, and does nothing where nothing is.
// No proxy should be running with the same PinDir.
func Cleanup(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	pods, err := redirect.PodPins(cfg.PinDir)
	if err != nil {
		return fmt.Errorf("clean up capture: %w", err)
	}
	// Nobody is captured any more, so what is ended now does not come back.
	errs := []error{redirect.Unenroll(cfg.PinDir)}
	namespaces := findNamespaces(pods)
	for _, pod := range pods {
		ns := namespaces[pod.NetnsIno]
		if ns == nil {
			continue // it is gone, or nobody shows it: without marks its rules do nothing
		}
		if err := cleanNamespace(ns); err != nil {
			errs = append(errs, fmt.Errorf("namespace %d: %w", pod.Cookie, err))
		}
		ns.Close()
	}
	errs = append(errs, redirect.Remove(cfg.PinDir), context.Cause(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up capture: %w", err)
	}
	return nil
}

func cleanNamespace(ns *netns.NS) error {
	r, err := newRouter(ns, true)
	if err != nil {
		return err
	}
	defer r.close()
	own, _, _, err := r.addresses()
	if err != nil {
		return err
	}
	return errors.Join(destroyMarked(ns, own, -1), r.remove())
}

// findNamespaces opens the namespaces of the pods, by inode, through whatever
// on this machine leads to them: processes, mounts of names, descriptors.
func findNamespaces(pods []redirect.PodPin) map[uint32]*netns.NS {
	cookies := map[uint32]uint64{}
	for _, p := range pods {
		if p.NetnsIno != 0 {
			cookies[p.NetnsIno] = p.Cookie
		}
	}
	found := map[uint32]*netns.NS{}
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/run/netns/*", "/run/docker/netns/*", "/proc/[0-9]*/fd/*"} {
		if len(found) == len(cookies) {
			break
		}
		paths, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		for _, path := range paths {
			ino := namespaceInode(path)
			if cookies[ino] == 0 || found[ino] != nil {
				continue
			}
			ns, err := netns.Open(path)
			if err != nil {
				continue
			}
			// Inodes are reused, cookies are not.
			if cookie, err := ns.Cookie(); err != nil || cookie != cookies[ino] {
				ns.Close()
				continue
			}
			found[ino] = ns
		}
	}
	return found
}

// namespaceInode is the inode of the namespace that path leads to; 0: to none.
func namespaceInode(path string) uint32 {
	var st unix.Stat_t
	var fs unix.Statfs_t
	// Statfs first: opening a descriptor's path could block on a FIFO, and
	// stat of one does not.
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Stat(path, &st) != nil {
		return 0
	}
	return uint32(st.Ino)
}
