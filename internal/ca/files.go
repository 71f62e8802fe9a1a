// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

const (
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600

	// minRSABits is what crypto/tls accepts in FIPS mode; a smaller key would
	// sign certificates that every handshake refuses.
	minRSABits = 2048

	// maxFile bounds what is read of a file: thousands of certificates.
	maxFile = 1 << 20
)

// load reads both files and sees that they belong together.
func load(dir string) (*Embedded, error) {
	e := &Embedded{dir: dir}
	keyPath, rootPath := filepath.Join(dir, keyFile), filepath.Join(dir, rootFile)
	text, err := read(keyPath)
	if err != nil {
		return nil, err
	}
	if e.key, err = parseKey(text); err != nil {
		return nil, fmt.Errorf("%s: %v", keyPath, err)
	}
	if text, err = read(rootPath); err != nil {
		return nil, err
	}
	if e.roots, err = parseCertificates(text); err != nil {
		return nil, fmt.Errorf("%s: %v", rootPath, err)
	}
	pub := e.key.Public().(interface{ Equal(crypto.PublicKey) bool }) // as EC and RSA keys have
	i := slices.IndexFunc(e.roots, func(c *x509.Certificate) bool { return pub.Equal(c.PublicKey) })
	if i < 0 {
		return nil, fmt.Errorf("%s: not the key of a certificate in %s", keyPath, rootPath)
	}
	e.root = e.roots[i]
	e.warnings, err = openToOthers(dir)
	return e, err
}

// openToOthers lists what of the authority others could read (the key) or
// replace.
func openToOthers(dir string) ([]string, error) {
	var warnings []string
	for _, f := range []struct {
		path   string
		others fs.FileMode // bits that nobody but the owner should have
		harm   string
	}{
		{filepath.Join(dir, keyFile), 0o077, "others than its owner can use the key of the embedded CA"},
		{filepath.Join(dir, rootFile), 0o022, "others than its owner can replace the root of the embedded CA"},
		{dir, 0o022, "others than its owner can replace the files of the embedded CA"},
	} {
		info, err := os.Stat(f.path)
		if err != nil {
			return nil, err
		}
		if mode := info.Mode().Perm(); mode&f.others != 0 {
			warnings = append(warnings, fmt.Sprintf("%s: %s (mode %04o)", f.path, f.harm, mode))
		}
	}
	return warnings, nil
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s: %d bytes is too large for a PEM file", path, info.Size())
	}
	return os.ReadFile(path)
}

// parseKey reads the first private key of a PEM text. Blocks of other kinds are
// passed over: openssl writes EC PARAMETERS before an EC key.
func parseKey(text []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("no private key in PEM form (EC PRIVATE KEY, RSA PRIVATE KEY or PRIVATE KEY)")
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, errors.New("the private key is encrypted, which is not supported")
		}
		var key any
		var err error
		switch block.Type {
		case "EC PRIVATE KEY": // SEC 1, RFC 5915
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY": // PKCS#1, RFC 8017
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "PRIVATE KEY": // PKCS#8, RFC 5208
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %v", block.Type, err)
		}
		return usable(key)
	}
}

// usable lets through the keys whose signatures every peer accepts.
func usable(key any) (crypto.Signer, error) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P224() {
			return nil, errors.New("curve P-224 is not supported; P-256, P-384 and P-521 are")
		}
		return k, nil
	case *rsa.PrivateKey:
		if bits := k.N.BitLen(); bits < minRSABits {
			return nil, fmt.Errorf("an RSA key of %d bits is too small; %d is the least", bits, minRSABits)
		}
		return k, nil
	}
	return nil, fmt.Errorf("a key of type %T is not supported; EC and RSA are", key)
}

// parseCertificates reads every certificate of a PEM text.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %v", len(all)+1, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("no certificate in PEM form")
	}
	return all, nil
}

// publish puts a file into dir whole or not at all. If there is one of that
// name already it is left alone, and that is no error.
func publish(dir, name string, text []byte) (err error) {
	// CreateTemp opens with O_EXCL and mode 0600.
	f, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync() // or a crash could leave the name on an empty file
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// newKeyText is a new key in the form that openssl and the reference read.
func newKeyText() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return encode("PRIVATE KEY", der), nil
}
