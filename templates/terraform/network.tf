# Only these rules allow connections. DNS, time and instance metadata need no rule, because security groups don't filter
# these (https://docs.aws.amazon.com/vpc/latest/userguide/vpc-security-groups.html).

resource "aws_security_group" "node" {
  name_prefix = "${var.name}-node-"
  description = "The nodes of ${var.name}"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-node" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_security_group" "clients" {
  count = local.makes_load_balancer ? 1 : 0

  name_prefix = "${var.name}-clients-"
  description = "The load balancer that clients of ${var.name} connect to"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-clients" })

  lifecycle {
    create_before_destroy = true
  }
}

locals {
  # A client connects to the load balancer, and then to any node, because nats-server tells clients the nodes'
  # addresses.
  client_facing = merge({ node = aws_security_group.node.id }, local.makes_load_balancer ? { clients = aws_security_group.clients[0].id } : {})
  # The rules of an existing load balancer belong to its owner.
  load_balancer_group_ids = local.makes_load_balancer ? aws_security_group.clients[*].id : var.existing_load_balancer.security_group_ids
  from_blocks             = { for pair in setproduct(keys(local.client_facing), var.client_cidr_blocks) : join(" ", pair) => pair }
  # The key is a number, because a group that is made in the same run has no id yet.
  from_groups = {
    for pair in setproduct(keys(local.client_facing), range(length(var.client_security_group_ids))) : join(" ", pair) => {
      security_group_id = local.client_facing[pair[0]]
      client            = var.client_security_group_ids[pair[1]]
    }
  }
}

resource "aws_vpc_security_group_ingress_rule" "from_blocks" {
  for_each = local.from_blocks

  security_group_id = local.client_facing[each.value[0]]
  description       = "Clients"
  cidr_ipv4         = each.value[1]
  ip_protocol       = "tcp"
  from_port         = 4222
  to_port           = 4222
}

resource "aws_vpc_security_group_ingress_rule" "from_groups" {
  for_each = local.from_groups

  security_group_id            = each.value.security_group_id
  description                  = "Clients"
  referenced_security_group_id = each.value.client
  ip_protocol                  = "tcp"
  from_port                    = 4222
  to_port                      = 4222
}

# Health checks and clients arrive from the load balancer. Clients keep their own addresses, and this rule still applies.
resource "aws_vpc_security_group_ingress_rule" "from_load_balancer" {
  count = length(local.load_balancer_group_ids)

  security_group_id            = aws_security_group.node.id
  description                  = "The load balancer"
  referenced_security_group_id = local.load_balancer_group_ids[count.index]
  ip_protocol                  = "tcp"
  from_port                    = 4222
  to_port                      = 4222
}

resource "aws_vpc_security_group_egress_rule" "to_nodes" {
  count = local.makes_load_balancer ? 1 : 0

  security_group_id            = aws_security_group.clients[0].id
  description                  = "The nodes"
  referenced_security_group_id = aws_security_group.node.id
  ip_protocol                  = "tcp"
  from_port                    = 4222
  to_port                      = 4222
}

# The key is a number, because a group that is made in the same run has no id yet.
resource "aws_vpc_security_group_ingress_rule" "metrics" {
  count = length(var.metrics_security_group_ids)

  security_group_id            = aws_security_group.node.id
  description                  = "Metrics of the agents"
  referenced_security_group_id = var.metrics_security_group_ids[count.index]
  ip_protocol                  = "tcp"
  from_port                    = 9464
  to_port                      = 9464
}

resource "aws_vpc_security_group_ingress_rule" "routes" {
  security_group_id            = aws_security_group.node.id
  description                  = "Routes from the other nodes"
  referenced_security_group_id = aws_security_group.node.id
  ip_protocol                  = "tcp"
  from_port                    = 6222
  to_port                      = 6222
}

resource "aws_vpc_security_group_egress_rule" "routes" {
  security_group_id            = aws_security_group.node.id
  description                  = "Routes to the other nodes"
  referenced_security_group_id = aws_security_group.node.id
  ip_protocol                  = "tcp"
  from_port                    = 6222
  to_port                      = 6222
}

resource "aws_vpc_security_group_egress_rule" "https" {
  for_each = toset(var.egress_cidr_blocks)

  security_group_id = aws_security_group.node.id
  description       = "AWS endpoints and the packages"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

# The key is a number, because a list that is made in the same run has no id yet.
resource "aws_vpc_security_group_egress_rule" "https_to_prefix_lists" {
  count = length(var.egress_prefix_list_ids)

  security_group_id = aws_security_group.node.id
  description       = "AWS endpoints and the packages"
  prefix_list_id    = var.egress_prefix_list_ids[count.index]
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}
