// SPDX-License-Identifier: Apache-2.0

// Package static brings workloads into the mesh on machines without Kubernetes:
// a file names them, and says in which network namespace each lives. That may
// be a named namespace, one of a process, of a container by its cgroup, or of a
// systemd unit with PrivateNetwork= or NetworkNamespacePath=.
//
// The file is read again when it changes, and every place is looked at again
// all the time, so that a unit that restarts comes back with its new namespace
// and one that stops is captured no more. A file that makes no sense changes
// nothing.
package static

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/roster"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A Config says where things are.
type Config struct {
	// File is the file of workloads.
	File string
	// Roster gets them.
	Roster *roster.Roster
	// Proc is where procfs is, CgroupRoot the root of cgroup version 2.
	Proc, CgroupRoot string
	// NamedNetNS is where named namespaces are.
	NamedNetNS string
	// Hosts are namespaces that are no workload's.
	Hosts []netns.ID
	// Interval is between looks; 0: a second.
	Interval time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

// retryInterval is between attempts with a workload that the proxy refuses.
const retryInterval = 5 * time.Second

// A Keeper keeps the roster in accord with the file.
type Keeper struct {
	cfg       Config
	log       *slog.Logger
	stamp     string               // of the file as it was read last
	workloads []Workload           // of the last file that made sense
	listed    map[string]bool      // uids that we have put on the roster
	trouble   map[string]string    // what was told last, by uid; the file's is under ""
	asked     map[string]time.Time // when one that was refused was asked again
}

// New makes a Keeper; nothing is read yet.
func New(cfg Config) *Keeper {
	k := &Keeper{cfg: cfg, log: cfg.Logger, listed: map[string]bool{}, trouble: map[string]string{}, asked: map[string]time.Time{}}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	if k.cfg.Interval == 0 {
		k.cfg.Interval = time.Second
	}
	return k
}

// Load reads the file for the first time and fills the roster. A file that
// cannot be read is an error here, since nothing is known without it; later it
// changes nothing.
func (k *Keeper) Load() error {
	if err := k.read(); err != nil {
		return err
	}
	k.settle()
	return nil
}

// Run follows the file and the machine until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(k.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		k.note("", k.read())
		k.settle()
	}
}

// read takes the file's workloads, if it has changed and makes sense.
func (k *Keeper) read() error {
	st, err := os.Stat(k.cfg.File)
	if err != nil {
		return fmt.Errorf("workloads: %w", err)
	}
	stamp := fmt.Sprint(st.ModTime(), st.Size(), st.Sys())
	if stamp == k.stamp && k.trouble[""] == "" {
		return nil
	}
	text, err := os.ReadFile(k.cfg.File)
	if err != nil {
		return fmt.Errorf("workloads: %w", err)
	}
	workloads, err := Parse(text)
	if err != nil {
		return fmt.Errorf("workloads: %s: %w", k.cfg.File, err)
	}
	k.stamp, k.workloads = stamp, workloads
	k.log.Info("workloads were read", "file", k.cfg.File, "workloads", len(workloads))
	return nil
}

// note tells of trouble, once as long as it stays the same.
func (k *Keeper) note(uid string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != k.trouble[uid] {
		if err != nil {
			k.log.Warn("a workload is not captured", "uid", uid, "error", err)
		} else {
			k.log.Info("a workload is well again", "uid", uid)
		}
	}
	k.trouble[uid] = text
}

// settle looks where each workload lives now, and has the roster say so.
func (k *Keeper) settle() {
	wanted := map[string]bool{}
	for _, w := range k.workloads {
		ns, err := k.locate(w)
		if err != nil {
			k.note(w.UID(), fmt.Errorf("line %d: %w", w.Line, err))
			continue
		}
		wanted[w.UID()] = true
		k.list(w, ns)
	}
	for uid := range k.listed {
		if !wanted[uid] {
			k.cfg.Roster.Drop(uid)
			delete(k.listed, uid)
			k.log.Info("a workload is captured no more", "uid", uid)
		}
	}
}

// list puts a workload on the roster, unless it is there as it should be.
func (k *Keeper) list(w Workload, ns *netns.NS) {
	s, ok := k.cfg.Roster.Get(w.UID())
	if !ok || s.Inode != ns.ID().Ino || s.Pod.ServiceAccount != w.ServiceAccount {
		if ok {
			k.cfg.Roster.Drop(w.UID())
		}
		// What runs before it is listed is late; a proxy that had captured it
		// before knows better.
		k.cfg.Roster.Set(roster.Pod{
			UID: w.UID(), Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, NS: ns, Late: true,
		})
		k.listed[w.UID()] = true
		return
	}
	ns.Close()
	var err error
	if s.State == roster.Refused {
		err = s.Err
		if now := time.Now(); now.Sub(k.asked[w.UID()]) >= retryInterval {
			k.asked[w.UID()] = now
			k.cfg.Roster.Again(w.UID())
		}
	} else if s.State != roster.Served {
		return // what was told stays true until the proxy says otherwise
	}
	k.note(w.UID(), err)
}

// locate opens the namespace of a workload and sees that it may have it.
func (k *Keeper) locate(w Workload) (*netns.NS, error) {
	ns, err := k.open(w)
	if err != nil {
		return nil, err
	}
	owner, owned := k.cfg.Roster.Owner(ns.ID())
	switch {
	case slices.Contains(k.cfg.Hosts, ns.ID()):
		err = fmt.Errorf("%s lives in the host's network namespace, which cannot be captured", w.Name)
	case owned && owner != w.UID() && k.isWanted(owner):
		err = fmt.Errorf("%s lives in the network namespace of %s", w.Name, owner)
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

func (k *Keeper) isWanted(uid string) bool {
	return slices.ContainsFunc(k.workloads, func(w Workload) bool { return w.UID() == uid })
}

func (k *Keeper) open(w Workload) (*netns.NS, error) {
	switch {
	case w.PID != 0:
		return netns.Open(k.proc(w.PID))
	case w.Cgroup != "":
		return k.ofCgroup(filepath.Join(k.cfg.CgroupRoot, w.Cgroup))
	case w.Unit != "":
		dir, err := k.unit(w.Unit)
		if err != nil {
			return nil, err
		}
		return k.ofCgroup(dir)
	case strings.HasPrefix(w.NetNS, "/"):
		return netns.Open(w.NetNS)
	}
	return netns.Open(filepath.Join(k.cfg.NamedNetNS, w.NetNS))
}

func (k *Keeper) proc(pid int) string {
	return filepath.Join(k.cfg.Proc, strconv.Itoa(pid), "ns/net")
}

// unit is the cgroup of a systemd unit, which has its name.
func (k *Keeper) unit(name string) (string, error) {
	var found []string
	err := filepath.WalkDir(k.cfg.CgroupRoot, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist): // it has gone meanwhile
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == name:
			found = append(found, path)
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("look for unit %s: %w", name, err)
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("unit %s does not run: no cgroup has its name", name)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("unit %s runs more than once: %s", name, strings.Join(found, ", "))
}

// ofCgroup is the namespace of the processes below a cgroup, which must all be
// in one.
func (k *Keeper) ofCgroup(dir string) (*netns.NS, error) {
	pids, err := pidsBelow(dir)
	if err != nil {
		return nil, err
	}
	var one *netns.NS
	for _, pid := range pids {
		ns, err := netns.Open(k.proc(pid))
		if errors.Is(err, os.ErrNotExist) {
			continue // it has ended
		}
		if err == nil && one != nil && one.ID() != ns.ID() {
			ns.Close()
			err = fmt.Errorf("cgroup %s has processes in more than one network namespace", dir)
		}
		if err != nil {
			if one != nil {
				one.Close()
			}
			return nil, err
		}
		if one != nil {
			one.Close()
		}
		one = ns
	}
	if one == nil {
		return nil, fmt.Errorf("cgroup %s has no process", dir)
	}
	return one, nil
}

func pidsBelow(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil && path != dir {
			return nil // it has gone meanwhile
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil // likewise
		}
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return pids, nil
}
