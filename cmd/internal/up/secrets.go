package up

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ownKey is the SECRETS_KEY of a relay with a private Redis that was given none: it is made once and kept beside the data that
// it seals, for this user alone.
func ownKey(dataDir string) (string, error) {
	path := filepath.Join(dataDir, "secrets.key")
	key, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return strings.TrimSpace(string(key)), err
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return "", err
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	text := "own:" + base64.StdEncoding.EncodeToString(random[:])
	// Whole or not at all: half a key would open nothing.
	f, err := os.CreateTemp(dataDir, "secrets.key.*")
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(text + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Link(f.Name(), path) // never in place of one that another relay made
	}
	_ = os.Remove(f.Name())
	if errors.Is(err, fs.ErrExist) {
		return ownKey(dataDir)
	}
	if err != nil {
		return "", err
	}
	return text, synced(dataDir)
}

// synced makes sure that a new name in a directory is on the disk: what it seals will be, too.
func synced(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
