//go:build tools

// Package etcd pins the store that the chart embeds; the tests' stand-in for its published image is made from it.
package etcd

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/server/v3"
)
